"""Deprecated: the rule of DDP's buckets is in ``netsim_ddp.communication.executor`` now."""

import warnings

from netsim_ddp.communication.executor import ddp_buckets as ddp_buckets

warnings.warn("import ddp_buckets from netsim_ddp.communication.executor", DeprecationWarning, stacklevel=2)
