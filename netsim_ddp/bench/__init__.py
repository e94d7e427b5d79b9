"""Running cells: timing, one rank's loop, starting ranks, and the order of it all."""
