"""Deprecated: what the documentation of version 0.1.0 imported from here is in ``netsim_ddp`` now."""

import warnings

from netsim_ddp.communication.exchange import all_reduce as all_reduce
from netsim_ddp.communication.exchange import summed as summed

warnings.warn("import all_reduce and summed from netsim_ddp", DeprecationWarning, stacklevel=2)
