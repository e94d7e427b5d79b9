"""The built-in methods, one implementation a file; their entries are in :mod:`netsim_ddp.methods`."""
