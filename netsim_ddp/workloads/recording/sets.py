"""The gradients that a recording keeps, as they are there for a moment: accumulated, and not exchanged yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netsim_ddp.workloads.recording.gradients import indices_of, packed, sample


@dataclass(frozen=True)
class Sampled:
    """Gradients of step ``number``, float16 [sum of kept], in the order of the recording's parameters."""

    number: int
    values: np.ndarray
    scales: list[float]


class Sampling:
    """Takes one set after the other. With several passes in a step the last one's stands, which has them all."""

    def __init__(self, parameters: Sequence[nn.Parameter], kept: Sequence[int]) -> None:
        """Args: kept: how many values of each parameter; empty where no gradients are asked for."""
        self._parameters, self.kept = parameters, kept
        self._handles: list[Any] = []
        self._found: dict[int, Tensor] = {}
        self.sets: list[Sampled] = []

    def take(self, wanted: bool) -> None:
        """Whether the step that begins is one whose gradients are kept."""
        if not wanted:
            self.close()
        elif self.kept and not self._handles:
            parameter: Any
            for number, parameter in enumerate(self._parameters):
                handle = parameter.register_post_accumulate_grad_hook(
                    lambda parameter, number=number: self._note(number, parameter)
                )
                self._handles.append(handle)

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _note(self, number: int, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        places = indices_of(parameter.numel(), self.kept[number])
        whole = len(places) == parameter.numel()
        at = None if whole else torch.from_numpy(places).to(parameter.device)
        self._found[number] = sample(parameter.grad, at)

    def add(self, step: int, order: Sequence[int]) -> bool:
        """Keep what step ``step`` has brought; returns False where it is not finite. A parameter that took no part is
        zeros."""
        if not self.kept:
            return True
        found, self._found = self._found, {}
        empty = {
            each: torch.zeros(self.kept[each], dtype=torch.float32) for each in order if each not in found
        }
        if (one := packed([(found | empty)[each] for each in order])) is not None:
            self.sets.append(Sampled(step, *one))
        return one is not None
