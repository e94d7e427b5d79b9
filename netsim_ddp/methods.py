"""Methods as the command line and a file name them: ``topk,ratio=0.01,values=fp16``. What they do is in
:mod:`netsim_ddp.communication`; this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from netsim_ddp.errors import UsageError
from netsim_ddp.names import is_reference, suggest
from netsim_ddp.options import Options, above_zero, fraction, number, one_of, switch, whole

MAX_RANK = 1024  # of an approximation; far above where it pays

_OVERLAP = switch(False, "exchange buckets while backward goes on; netsim run and HookState only")
_FEEDBACK = switch(True, "keep what was not sent, and add it to the next gradient (error feedback)")
_SPARSE: Options = {
    "ratio": fraction(0.01, "kept fraction k/N of each parameter's entries"),
    "feedback": _FEEDBACK,
    "overlap": _OVERLAP,
    "selector": one_of(
        "exact", "sampled", "fitted", "random", "block", meaning="how the k entries are chosen"
    ),
    "scope": one_of("parameter", "bucket", "model", meaning="over what the k largest are taken"),
    "dense_below": whole(0, "parameters with fewer entries are sent whole"),
    "dense_norms": switch(False, "parameters of at most one dimension are sent whole"),
    "warmup_steps": whole(0, "steps during which more is sent, ratio ** (s/5) in stage s = 1 to 4"),
    "adaptive": switch(False, "share k out among parameters by what they sent"),
    "nonfinite": one_of(
        "raise", "skip", meaning="what a NaN or inf in one rank's gradient, or in a sum, does"
    ),
}
_CORRECTED: Options = {
    "momentum": number(
        0.0, "accumulated before the selection; the optimizer has none then", least=0, below=1, example="0.9"
    ),
    "clip": above_zero(None, "the norm that the gradient of all ranks may have; none: no limit", example="1"),
    "masking": one_of("auto", "on", "off", meaning="whether entries that are sent lose their momentum"),
}
_CODED: Options = {
    "values": one_of(
        "fp32", "fp16", "bf16", "int8", "int8-stochastic", meaning="how values are rounded on the wire"
    ),
    "indices": one_of("packed", "int32", "int64", meaning="how positions are written on the wire"),
}
METHODS: Mapping[str, Options] = {
    "dense": {"overlap": _OVERLAP},
    "fp16": {"overlap": _OVERLAP},
    "bf16": {"overlap": _OVERLAP},
    "powersgd": {
        "rank": whole(1, "of the approximation", least=1, most=MAX_RANK, example=2),
        "min_compression": above_zero(2.0, "matrices that this saves less than a factor of go as they are"),
        "feedback": _FEEDBACK,
        "overlap": _OVERLAP,
        "seed": whole(0, "of the first step's basis", most=2**31 - 1, example=1),
    },
    "topk": {
        **_SPARSE,
        **_CORRECTED,
        **_CODED,
        "keep": switch(True, "split: owners keep all but a parameter's k_i largest sums for later steps"),
        "collective": one_of("auto", "split", "allgather", meaning="how the entries travel; auto: by cost"),
    },
    "topk-allgather": {**_SPARSE, **_CORRECTED, **_CODED},
    "topk-dense": _SPARSE,
}
"""Method names and their options; ``netsim_ddp.communication`` holds their implementations."""
ABOUT: Mapping[str, str] = {
    "dense": "all-reduce of the whole gradient in the parameters' own type: the baseline",
    "fp16": "dense, rounded to float16 on the wire, as torch's fp16_compress_hook does it",
    "bf16": "dense, rounded to bfloat16 on the wire",
    "powersgd": "every matrix as the product of two thin ones (Vogels et al. 2019)",
    "topk": "the k largest entries of each parameter with error feedback (Stich et al. 2018), by split-reduce or "
    "all-gather",
    "topk-allgather": "the same, every rank's entries sent to all others",
    "topk-dense": "the same, written into a dense tensor and all-reduced: it saves nothing on the wire",
}
"""What each method does, in one line."""
WITH_CODEC = tuple(name for name, options in METHODS.items() if "indices" in options)
"""Those whose messages are the codec's."""


def takes(name: str, option: str) -> bool:
    """Whether the method has ``option``; of a user's own only ``overlap`` is known, which netsim itself sees to."""
    return option == "overlap" if is_reference(name) else option in METHODS[name]


def _as_written(value: Any) -> Any:
    """An option of a user's own method: a number or a switch if it reads like one, else text."""
    for kind in (int, float, lambda text: {"on": True, "off": False, "true": True, "false": False}[text]):
        if isinstance(value, str):
            with suppress(ValueError, KeyError):
                value = kind(value)
    return value


class MethodSpec(BaseModel):
    """One method and its parameters, as ``--method NAME[,key=value...]`` writes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """``topk,ratio=0.01``: unique within a scenario, stable between runs."""
        return ",".join(
            [self.name, *(f"{key}={_plain(value)}" for key, value in sorted(self.params.items()))]
        )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_method(text: str, also: Options | None = None) -> MethodSpec:
    """``"topk,ratio=0.01"`` -> its spec.

    Args:
        also: options that every method takes here beside its own.

    Raises:
        UsageError: unknown method or key, or a bad value.
    """
    name, *pairs = (part.strip() for part in text.split(","))
    params: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"method {text!r}: {pair!r} is not key=value", hint=f"write {name},key=value")
        if key in params:
            raise UsageError(f"method {text!r} gives {key!r} twice", hint=f"write {name},{key}={value}")
        params[key] = value
    return _method(name, params, also or {})


def _method(name: str, params: Mapping[str, Any], also: Options) -> MethodSpec:
    if is_reference(name):
        params = {key: value if key in also else _as_written(value) for key, value in params.items()}
    return MethodSpec(name=name, params=typed_params(name, params, also))


def typed_params(name: str, params: Mapping[str, Any], also: Options | None = None) -> dict[str, Any]:
    """The options ``params`` of the method ``name``, each of its own type; those left out stay out.

    What the command line, a file and Python hand over all comes through here. A user's own method,
    ``my_module:factory``, takes any options, as they are.

    Args:
        also: options that every method takes here beside its own.

    Raises:
        UsageError: unknown method or option, a bad value, or options that exclude each other. The message names the
            method and the option, and says what to write instead.
    """
    if not isinstance(name, str):
        raise UsageError(f"method {name!r} is not a name", hint=f"choose from {', '.join(METHODS)}")
    if not isinstance(params, Mapping):
        raise UsageError(
            f"method {name!r}: the options {params!r} are not a dict",
            hint='write for example {"ratio": 0.01}',
        )
    also = also or {}
    if is_reference(name):
        known: Options = {"overlap": _OVERLAP, **also}
        return {key: known[key].typed(key, value) if key in known else value for key, value in params.items()}
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", hint=_known_methods(name))
    options = {**METHODS[name], **also}
    parsed: dict[str, Any] = {}
    for key, value in params.items():
        if key not in options:
            raise UsageError(f"method {name!r} has no option {key!r}", hint=_known_options(str(key), options))
        parsed[key] = _named(name, options[key].typed, key, value)
    _named(name, check_together, parsed)
    return parsed


def _named(name: str, check: Callable[..., Any], *arguments: Any) -> Any:
    """What ``check`` returns; its complaint names the method."""
    try:
        return check(*arguments)
    except UsageError as error:
        raise UsageError(f"method {name!r}: {error.message}", hint=error.hint) from None


def _known_methods(name: str) -> str:
    if name.partition(",")[0] in METHODS:
        return f"name {name.partition(',')[0]!r}, and give its options beside it"
    return suggest(name, METHODS) + "; your own is named my_module:factory"


def _known_options(key: str, options: Options) -> str:
    others = [method for method, theirs in METHODS.items() if key in theirs]
    return suggest(key, options) + (f"; {key} is an option of {', '.join(others)}" if others else "")


def check_together(params: Mapping[str, Any]) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: with the two that do.
    """
    scope = params.get("scope", "parameter")
    for option in ("dense_below", "dense_norms", "adaptive"):
        if scope != "parameter" and params.get(option):
            raise UsageError(
                f"{option} is about single parameters, scope={scope} selects among all of them at once",
                hint=f"leave {option} or scope out",
            )
    for option in ("momentum", "clip"):
        if params.get(option) and not params.get("feedback", True):
            raise UsageError(
                f"{option} is accumulated in the residual, which feedback=off switches off",
                hint=f"leave {option} or feedback out",
            )
    if params.get("masking") == "on" and not params.get("momentum"):
        raise UsageError(
            "masking=on is about the velocity of entries that are sent, and there is none without momentum",
            hint="write momentum=0.9 too, or leave masking out",
        )
    if "keep" in params and params.get("collective") == "allgather":
        raise UsageError(
            "keep is about the sums that split-reduce's owners hold, which collective=allgather has none of",
            hint="leave keep out, or write collective=split",
        )
    if scope == "model" and params.get("overlap"):
        raise UsageError(
            "scope=model selects when the last gradient is there, so it cannot overlap the backward pass",
            hint="write scope=bucket, or overlap=off",
        )


def method_of(item: Any, also: Options | None = None) -> MethodSpec:
    """A method as a file holds it: ``topk,ratio=0.01``, or ``{name: topk, params: {ratio: 0.01}}``; ``also`` as
    :func:`parse_method` takes it."""
    if isinstance(item, MethodSpec):
        item = item.model_dump()
    if isinstance(item, str):
        return parse_method(item, also)
    params = item.get("params", {}) if isinstance(item, Mapping) else None
    if (
        not isinstance(params, Mapping)
        or not isinstance(item.get("name"), str)
        or set(item) - {"name", "params"}
    ):
        raise UsageError(f"{item!r} is not a method", hint="write for example topk,ratio=0.01")
    params = {str(key): value for key, value in params.items()}
    return _method(item["name"], params, also or {})
