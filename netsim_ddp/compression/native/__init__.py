"""The compiled kernels and their twins in plain torch."""
