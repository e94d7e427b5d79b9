"""The user-space token bucket: its clock, what Gloo sends, and TCP's window. It knows nothing of torch."""
