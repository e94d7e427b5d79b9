"""How a link proves what it delivers, by plain sockets."""
