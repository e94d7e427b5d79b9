"""One byte from every rank to every other: all of them learn, before any changes its state, that one cannot go on."""

from __future__ import annotations

import torch

from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.segments import Group


class Agreement:
    """Who objects to this step.

    Say so with :meth:`object` on every rank, run ``exchange``, then read ``objectors``: the same on all ranks.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        self._rank = group.rank
        wire = group.wire_device(device)
        self._votes = [torch.zeros(1, dtype=torch.uint8, device=wire) for _ in range(group.world_size)]
        mine = [self._votes[group.rank]] * group.world_size
        self.exchange = peer_exchange("agree", group, mine, self._votes, 1)

    def object(self, objects: bool) -> None:
        """This rank's vote."""
        self._votes[self._rank].fill_(int(objects))

    @property
    def objectors(self) -> list[int]:
        """Ranks that objected in the last exchange."""
        return [rank for rank, vote in enumerate(self._votes) if int(vote)]
