"""Which parameters an exchange takes, and by which names: one rule for the backend, the hook, ``run`` and ``train``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from netsim_ddp.errors import UsageError

Named = list[tuple[str, nn.Parameter]]
NamedParameters = nn.Module | Mapping[str, nn.Parameter] | Iterable[tuple[str, nn.Parameter]]
"""As a user hands them over."""

EXCHANGED = (torch.float32, torch.float16, torch.bfloat16)
"""Types of parameters whose gradients are exchanged: in float32, which holds the values of the others."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that are a wrapper's, wherever they stand."""

_INSTEAD = {
    torch.float64: "make the model float32 (model.float()), which is also half the traffic",
    torch.complex64: "keep its real and imaginary parts in two float32 parameters (torch.complex in forward)",
    torch.complex128: "keep its real and imaginary parts in two float32 parameters (torch.complex in forward)",
}


_WRITE = "write model.named_parameters()"


class UnusableParameter(UsageError, ValueError):
    """A parameter that no exchange can take; the message names it."""


def unwrapped(name: str) -> str:
    """``name`` as the model has it without torch.compile around one of its parts."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def without_prefixes(names: Iterable[str]) -> list[str]:
    """The names that the model has with no wrapper around it, so that nothing depends on which there are: not a
    checkpoint, nor the first basis of PowerSGD."""
    found = list(names)
    while found and any(all(name.startswith(prefix) for name in found) for prefix in _PREFIXES):
        found = [name.partition(".")[2] for name in found]
    shorter = [unwrapped(name) for name in found]
    return shorter if len(set(shorter)) == len(set(found)) else found


def named_list(
    given: NamedParameters,
) -> Named:
    """``(name, parameter)`` of what is a model, its ``named_parameters()``, or a dict of them.

    Raises:
        UsageError: it is something else, such as ``model.parameters()``; residuals are kept by name.
    """
    if isinstance(given, nn.Module):
        return list(given.named_parameters())
    if isinstance(given, Tensor | str) or not isinstance(given, Iterable):
        raise UsageError(f"a {type(given).__name__} is no list of named parameters", hint=_WRITE)
    pairs = list(given.items() if isinstance(given, Mapping) else given)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UsageError(
                f"parameters are needed with their names, and a {type(pair).__name__} came without one",
                hint=_WRITE,
            )
        if not isinstance(pair[1], Tensor):
            raise UsageError(f"{pair[0]!r} is a {type(pair[1]).__name__}, not a parameter", hint=_WRITE)
    return [(name, parameter) for name, parameter in pairs]


def model_parameters(named_parameters: NamedParameters) -> Named:
    """``named_parameters``, each parameter once, by :func:`without_prefixes`."""
    given: dict[int, tuple[str, nn.Parameter]] = {}
    for each in named_list(named_parameters):
        given.setdefault(id(each[1]), each)  # tied weights are listed twice: the first name counts
    names = without_prefixes(name for name, _ in given.values())
    return [(name, parameter) for name, (_, parameter) in zip(names, given.values(), strict=True)]


def trained(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Named:
    """Those that need a gradient.

    Raises:
        UnusableParameter: there is none, one has a type that is not exchanged, or two have the same name.
    """
    found = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not found:
        raise UnusableParameter("no parameter needs a gradient")
    seen: set[str] = set()
    for name, parameter in found:
        if name in seen:
            raise UnusableParameter(
                f"two parameters have the name {name}: what is kept back belongs to a parameter by its name. Give "
                "each model a state or backend of its own, or put the models into one module"
            )
        seen.add(name)
        _check(name, parameter)
    return found


def check_types(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Refuse a type that is not exchanged before anything is computed in it.

    Raises:
        UnusableParameter: a parameter that needs a gradient has one.
    """
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            _check(name, parameter)


def _check(name: str, parameter: Tensor) -> None:
    if parameter.dtype not in EXCHANGED:
        kinds = ", ".join(_plain(kind) for kind in EXCHANGED)
        raise UnusableParameter(
            f"parameter {name} is {_plain(parameter.dtype)}, and gradients of {kinds} parameters are exchanged: "
            + _INSTEAD.get(parameter.dtype, "make it float32")
        )
    if parameter.layout != torch.strided:
        raise UnusableParameter(
            f"parameter {name} is {_plain(parameter.layout)}: only dense ones are exchanged"
        )


def check_gradient(name: str, gradient: Tensor) -> None:
    """Refuse a gradient that cannot be exchanged.

    Raises:
        UnusableParameter: it is sparse.
    """
    if gradient.layout != torch.strided:
        raise UnusableParameter(
            f"the gradient of {name} is sparse ({_plain(gradient.layout)}), and only dense ones are exchanged: make "
            "the layer without sparse=True; compression sends the rows that matter anyway"
        )


def narrowed(average: Tensor, kind: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """``average`` (float32) as far as a parameter of type ``kind`` can hold it, times ``scale``, and what is beyond: a
    float16 ends at 65504, and error feedback may have saved up more. What is not finite stays as it is.

    Returns:
        both float32, of the same shape; the second None where nothing is beyond.
    """
    if kind == average.dtype:
        return average, None
    limit = torch.finfo(kind).max / scale
    beyond = (average.abs() > limit) & average.isfinite()
    if not bool(beyond.any()):
        return average, None
    fits = torch.where(beyond, average.clamp(-limit, limit), average)
    return fits, torch.where(beyond, average - fits, torch.zeros_like(average))


def _plain(kind: object) -> str:
    return str(kind).removeprefix("torch.")
