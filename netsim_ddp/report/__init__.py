"""Results as people read them. Imports no torch, so that a report builds anywhere."""
