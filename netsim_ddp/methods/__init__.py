"""The registry of methods: what is known of each without running it. Imports no torch.

A built-in method is its entry here and its implementation in :mod:`netsim_ddp.communication.methods`; nothing else
knows it by name. Whoever wants to know something of a method asks its entry.
"""

from __future__ import annotations

from netsim_ddp.methods.dense import DENSE
from netsim_ddp.methods.entry import MethodEntry
from netsim_ddp.methods.powersgd import POWERSGD
from netsim_ddp.methods.sixteen_bit import BF16, FP16
from netsim_ddp.methods.topk import TOPK, TOPK_ALLGATHER, TOPK_DENSE

METHODS: dict[str, MethodEntry] = {
    entry.name: entry for entry in (DENSE, FP16, BF16, POWERSGD, TOPK, TOPK_ALLGATHER, TOPK_DENSE)
}
"""The built-in methods by name."""
BASELINE = next(entry for entry in METHODS.values() if entry.is_baseline)
"""What every method is held against."""
DEFAULT = next(entry for entry in METHODS.values() if entry.is_default)
"""What runs beside it where nobody names a method."""
SIXTEEN_BIT = {entry.rival_on: entry.name for entry in METHODS.values() if entry.rival_on}
"""By backend, the 16-bit dense method that a reader would run otherwise."""


def entry_of(name: str) -> MethodEntry:
    """The entry of the method ``name``; of one that is not built in, such as a user's own, one that knows nothing."""
    return METHODS.get(name) or MethodEntry(name, impl=name)


def takes(name: str, option: str) -> bool:
    """Whether the method has ``option``; of a user's own only ``overlap`` is known, which netsim itself sees to."""
    return option in entry_of(name).options
