"""The emulated network. It knows nothing of torch or of training."""
