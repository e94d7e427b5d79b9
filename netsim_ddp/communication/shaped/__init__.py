"""The process group ``netsim``: Gloo moves the data, the token bucket says when it is there."""
