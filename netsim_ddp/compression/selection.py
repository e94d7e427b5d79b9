"""What a method sends of a flat gradient at each step: a budget and a selector, with room for what they choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.compression.budget import Budget, SelectionOptions
from netsim_ddp.compression.kernels import Gradient
from netsim_ddp.compression.selectors import BlockSelector, ExactSelector, RandomSelector, Selector
from netsim_ddp.compression.thresholds import FittedSelector, SampledSelector
from netsim_ddp.errors import UsageError

SELECTORS: dict[str, Callable[[], Selector]] = {
    selector.name: selector
    for selector in (ExactSelector, SampledSelector, FittedSelector, RandomSelector, BlockSelector)
}
"""Every selector by its name on the command line."""


class Selection:
    """Chooses entries step after step.

    Args:
        shapes: of the parameters, in the order of the flat gradient [N].

    Raises:
        UsageError: a selector that does not exist.
    """

    def __init__(self, shapes: Sequence[torch.Size], options: SelectionOptions, device: torch.device) -> None:
        if options.selector not in SELECTORS:
            raise UsageError(
                f"there is no selector {options.selector!r}", hint=f"choose from {', '.join(SELECTORS)}"
            )
        self.selector = SELECTORS[options.selector]()
        self.budget = Budget(shapes, options)
        self.capacity = self.budget.capacity(self.selector)
        """The most entries of any step."""
        self._counts = self.budget.counts()
        self._before = self.state_dict()
        self._values = torch.empty(self.capacity, dtype=torch.float32, device=device)
        self._indices = torch.empty(self.capacity, dtype=torch.int32, device=device)

    def run(
        self, gradient: Gradient, residual: Tensor | None, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """This step's entries of gradient + ``residual``; ``total`` gets the rest, by default the residual itself.

        Returns:
            values float32 [k] and indices int32 [k], ascending; overwritten by the next step.

        Raises:
            NonFiniteGradient: the residual has not changed then, and the step does not count.
        """
        self._before = self.state_dict()
        offsets, self._counts = self.budget.offsets, self.budget.counts()
        self.selector.step = self.budget.step
        table = offsets, self._counts, self._values, self._indices
        if residual is None:
            assert isinstance(gradient, Tensor)
            count = self.selector.pick(gradient, *table)
        else:
            count = self.selector.take(gradient, residual, *table, total)
        values, indices = self._values[:count], self._indices[:count]
        self.budget.record_sent(values, indices)
        return values, indices

    def waited(self, indices: Tensor, least: float) -> Tensor:
        """Those of the last step's ``indices`` (int32 [k]) in segments whose entries wait ``least`` steps or more on
        average, which is as many as the segment's size over its count."""
        offsets = self.budget.offsets
        rare = (offsets[1:] - offsets[:-1]).double() >= least * self._counts.double()
        if bool(rare.all()):
            return indices
        cuts = torch.searchsorted(indices, offsets.to(indices)).tolist()
        parts = [indices[cuts[at] : cuts[at + 1]] for at in rare.nonzero().flatten().tolist()]
        return torch.cat(parts) if parts else indices[:0]

    def take_back(self) -> None:
        """The last :meth:`run` counts for nothing: budget and selector are as before it."""
        self.load_state_dict(self._before)

    def state_dict(self) -> dict[str, Any]:
        return {"budget": self.budget.state_dict(), "selector": self.selector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        Raises:
            ValueError: it was saved with another selector or other segments.
        """
        self.budget.load_state_dict(state["budget"])
        self.selector.load_state_dict(state["selector"])
