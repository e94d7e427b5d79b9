"""Training for real: what compression costs in accuracy, and what it saves until an accuracy is reached."""
