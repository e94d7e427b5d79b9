"""What a backend, a hook's state, ``run`` and ``train`` say of an exchange before the ranks begin it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import netsim_ddp
from netsim_ddp.communication.comparison import OPTIONS, PARAMETERS, Facts
from netsim_ddp.communication.parameters import trained
from netsim_ddp.communication.segments import Method
from netsim_ddp.methods import METHODS

SAME_TORCH = frozenset({"powersgd"})
"""Methods whose bits are the same on all ranks only where they run the same torch: it multiplies matrices."""


def description(
    name: str,
    params: Mapping[str, Any],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    methods: Sequence[Method] = (),
    **more: Any,
) -> Facts:
    """What must be the same on all ranks for their messages to mean the same.

    Args:
        name, params: of the method, as it was asked for.
        methods: as they were built, one for each part of the parameters, where they have been.
        more: whatever else the ranks must agree in.

    Raises:
        UnusableParameter: as :func:`~netsim_ddp.communication.parameters.trained`.
    """
    facts: Facts = {"netsim": netsim_ddp.__version__}
    if name in SAME_TORCH:
        facts["torch"] = torch.__version__
    facts["method"] = name
    facts[OPTIONS] = resolved(name, params)
    facts |= more
    facts[PARAMETERS] = [
        [name, list(parameter.shape), str(parameter.dtype).removeprefix("torch.")]
        for name, parameter in trained(named_parameters)
    ]
    facts["exchanges"] = [[len(each.flat.parameters), each.collective] for each in methods]
    return facts


def resolved(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method with the defaults of those left out; what cannot be written down is left out too."""
    defaults = {key: option.default for key, option in METHODS.get(name, {}).items()}
    given = {key: value for key, value in params.items() if isinstance(value, str | int | float | None)}
    return dict(sorted({**defaults, **given}.items()))
