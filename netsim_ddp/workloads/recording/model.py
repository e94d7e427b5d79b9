"""Stands in for the model of a recording: its parameters by name, shape and type, without their values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from netsim_ddp.results.recording import Parameter, Recording


def layout(recording: Recording) -> tuple[list[Parameter], list[tuple[int, int]]]:
    """Returns the parameters of ``recording``, in the order of its buckets from the last to the first, and of each
    bucket, in the order of the buckets, its first parameter and the one after its last.

    A parameter has its bucket's type, which is what crosses the wire. A bucket of which only the size was seen counts
    as one parameter.
    """
    known = {each.name: each for each in recording.parameters}
    parameters: list[Parameter] = []
    ranges: list[tuple[int, int]] = []
    for number in range(len(recording.buckets) - 1, -1, -1):
        bucket, first = recording.buckets[number], len(parameters)
        parameters += [
            known[name].model_copy(update={"dtype": bucket.dtype}) for name in bucket.parameters
        ] or [Parameter(name=f"bucket {number}", shape=[bucket.numel], dtype=bucket.dtype)]
        ranges.append((first, len(parameters)))
    return parameters, ranges[::-1]


class RecordedModel(nn.Module):
    """``parameters``, each of one element that is repeated: nobody computes with them, and a large model takes no
    memory on any rank."""

    def __init__(self, parameters: list[Parameter], device: torch.device) -> None:
        super().__init__()
        self._named = [
            (
                each.name,
                nn.Parameter(
                    torch.zeros((), dtype=getattr(torch, each.dtype), device=device).expand(each.shape)
                ),
            )
            for each in parameters
        ]

    def named_parameters(self, *_: object, **__: object) -> Iterator[tuple[str, nn.Parameter]]:
        """Names of a recording may be any; a module's own may not."""
        yield from self._named
