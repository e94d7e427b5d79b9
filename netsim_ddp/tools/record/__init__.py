"""``netsim record``: a program runs as it is, its ranks write what they saw, and this makes one recording of it."""
