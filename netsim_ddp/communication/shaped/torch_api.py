"""What the process group ``netsim`` takes of torch that torch's stubs do not describe."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from torch._C._distributed_c10d import Store

ProcessGroupBase: Any = dist.ProcessGroup
"""Its stub lists overloads that nobody calls on a subclass; a subclass has only the forms that are called."""


class DistributedBackendOptions(Protocol):
    """What ``init_process_group`` hands a registered backend."""

    store: Store
    group_rank: int
    group_size: int
    timeout: timedelta
    group_id: str
    global_ranks_in_group: list[int]
