"""Many runs from one matrix: planned, ordered, saved after each, continued where they stopped. Imports no torch."""
