"""One measured step, and the experiment's loop around it."""
