"""A method of one's own: ``netsim run --method dense --method my_method:shared_random,ratio=0.05`` in this folder.

All ranks keep the same k random positions, so that values can be all-reduced and no index crosses the wire. What a
rank does not send stays in its residual (Stich et al. 2018, Random-k with memory). The contract is in docs/methods.md;
``netsim check my_method:shared_random`` tests it.
"""

from collections.abc import Mapping
from typing import Any

import torch

from netsim_ddp import FlatGradients, Group, Local, Method, NonFiniteGradient, Segment, summed


class SharedRandom(Method):
    name = "shared-random"

    def __init__(self, flat: FlatGradients, group: Group, *, ratio: float = 0.1, seed: int = 0) -> None:
        super().__init__(flat, group)
        self.seed, self.step = seed, 0
        self.residual = torch.zeros_like(flat.data)
        self.values = torch.empty(max(1, round(ratio * flat.numel)), device=flat.data.device)

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._pick),
            *summed(self.values, self.group),
            Local("decompress", self._spread),
        ]

    def _pick(self) -> None:
        # A generator of its own: the same on every rank, and nobody else's random numbers change.
        generator = torch.Generator().manual_seed(self.seed * 2**32 + self.step)
        order = torch.randperm(self.flat.numel, generator=generator)
        self.positions = order[: self.values.numel()].to(self.flat.data.device)
        self.compensated = self.flat.data + self.residual
        torch.index_select(self.compensated, 0, self.positions, out=self.values)
        if not self.flat.data.isfinite().all():
            self.values.fill_(torch.nan)  # the sum tells every rank, and none changes its residual

    def _spread(self) -> None:
        if not self.values.isfinite().all():
            raise NonFiniteGradient("a rank found a gradient that is not finite", -1)
        self.residual.copy_(self.compensated)[self.positions] = 0
        self.flat.data.zero_()[self.positions] = self.values / self.group.world_size
        self.step += 1

    @property
    def residual_bytes(self) -> int:
        return self.residual.numel() * 4

    def state_dict(self) -> dict[str, Any]:
        return {"residual": self.residual.clone(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.residual.copy_(state["residual"])
        self.step = state["step"]


def shared_random(flat: FlatGradients, group: Group, **options: Any) -> Method:
    """What ``--method my_method:shared_random,key=value`` calls; the class itself would do as well."""
    return SharedRandom(flat, group, **options)
