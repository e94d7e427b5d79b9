"""Predicted step times: one rank's local work measured here, the exchanges on a virtual clock."""
