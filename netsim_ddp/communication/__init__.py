"""How a gradient crosses the wire: methods as segments, the backend, the shaped process group."""
