"""What to run: a frozen, validated :class:`Scenario` from flags, a YAML file or a result file.

Precedence is CLI > file > default. The keys of a file are the long flags with underscores; quantities may be
written as people do (``bandwidth: 1gbps``) or resolved, with the unit in the key (``bandwidth_bps:
1000000000``), which is what result files hold. This module imports neither torch nor a model.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from netsim_ddp.errors import UsageError
from netsim_ddp.names import check_dataset, check_model, default_dataset
from netsim_ddp.units import parse_duration, parse_rate, parse_ratio

MAX_WORKERS = 64
LINKS = ("auto", "tc", "bucket", "none")


def _switch(text: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False}
    try:
        return words[str(text).lower()]
    except KeyError:
        raise UsageError(f"{text!r} is not a switch", hint="write on or off") from None


def _one_of(*names: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in names:
            raise UsageError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return check


_SPARSE: Mapping[str, Callable[[Any], Any]] = {
    "ratio": parse_ratio,
    "feedback": _switch,
    "overlap": _switch,
}
METHODS: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "dense": {"overlap": _switch},
    "fp16": {"overlap": _switch},
    "topk": {
        **_SPARSE,
        "values": _one_of("fp32", "fp16"),
        "keep": _switch,
        "collective": _one_of("auto", "split", "allgather"),
    },
    "topk-allgather": {**_SPARSE, "values": _one_of("fp32", "fp16")},
    "topk-dense": _SPARSE,
}
"""Method names and their options; ``netsim_ddp.communication`` holds their implementations."""


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


def parse_method(text: str) -> MethodSpec:
    """``"topk,ratio=0.01"`` -> its spec.

    Raises:
        UsageError: unknown method or key, or a bad value.
    """
    name, *pairs = (part.strip() for part in text.split(","))
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", hint=suggest(name, METHODS))
    options = METHODS[name]
    params: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"method {text!r}: {pair!r} is not key=value", hint=f"write {name},key=value")
        if key not in options:
            known = suggest(key, options) if options else f"{name} takes no options"
            raise UsageError(f"method {name!r} has no option {key!r}", hint=known)
        try:
            params[key] = options[key](value)
        except UsageError as error:
            raise UsageError(f"method {text!r}: {error.message}", hint=error.hint) from None
    return MethodSpec(name=name, params=params)


def suggest(word: str, known: Any) -> str:
    """``did you mean 'topk'?`` or the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}? known: {', '.join(names)}" if close else f"known: {', '.join(names)}"


_QUANTITIES: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "bandwidth": ("bandwidth_bps", parse_rate),
    "compute": ("compute_s", lambda text: parse_duration(text, what="compute")),
    "timeout": ("timeout_s", lambda text: parse_duration(text, what="timeout")),
    "time_budget": ("time_budget_s", lambda text: parse_duration(text, what="time_budget")),
}


class Scenario(BaseModel):
    """One run: the model, the link, the methods and how often. Every field is printed and saved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "simple_cnn"
    dataset: str | None = None
    batch_size: int = Field(default=32, ge=1, le=65536)
    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    compute_s: float | None = Field(default=None, gt=0)
    workers: int = Field(default=4, ge=1, le=MAX_WORKERS)
    bandwidth_bps: int = Field(default=10**9, ge=1)
    link: Literal["auto", "tc", "bucket", "none"] = "auto"
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    execution: Literal["auto", "concurrent", "replayed"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    methods: tuple[MethodSpec, ...] = (MethodSpec(name="dense"), MethodSpec(name="topk"))
    ratio: float = 0.01
    steps: int = Field(default=20, ge=1, le=10**6)
    warmup: int = Field(default=3, ge=0, le=10**6)
    repeats: int = Field(default=3, ge=1, le=1000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    timeout_s: float = Field(default=60.0, gt=0)
    time_budget_s: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise UsageError("a scenario is a mapping of keys to values")
        values = dict(data)
        known = [*cls.model_fields, *_QUANTITIES]
        for key in values:
            if key not in known:
                raise UsageError(f"unknown key {key!r}", hint=suggest(str(key), known))
        for name, (resolved, parse) in _QUANTITIES.items():
            if name in values:
                text = values.pop(name)
                values[resolved] = None if text is None else parse(str(text))
        return values

    @field_validator("ratio", mode="before")
    @classmethod
    def _ratio(cls, value: Any) -> float:
        return parse_ratio(value)

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        return [parse_method(item) if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_model(self.model)
        if self.dataset is not None:
            check_dataset(self.dataset)
        for method in self.methods:
            options = METHODS.get(method.name)
            if options is None:
                raise UsageError(f"unknown method {method.name!r}", hint=suggest(method.name, METHODS))
            for key in method.params:
                if key not in options:
                    raise UsageError(f"method {method.name!r} has no option {key!r}")
        if not self.methods:
            raise UsageError("no method to run", hint="write for example --method dense --method topk")
        ids = [method.id for method in self.cells()]
        if repeated := sorted({name for name in ids if ids.count(name) > 1}):
            raise UsageError(f"method {repeated[0]!r} is named twice")
        return self

    def resolved(self) -> Scenario:
        """This scenario with the defaults that depend on other values, or on this machine, filled in."""
        cores = available_cores()
        execution = self.execution
        if execution == "auto":
            execution = "replayed" if self.workers > cores else "concurrent"
        # Replayed, a rank has the host to itself while it is measured, as on a machine of its own.
        threads = cores if execution == "replayed" else max(1, cores // self.workers)
        return self.model_copy(
            update={
                "execution": execution,
                "dataset": self.dataset or default_dataset(self.model),
                "threads": self.threads or threads,
                "methods": self.cells(),
            }
        )

    def cells(self) -> tuple[MethodSpec, ...]:
        """One spec per cell: ``ratio`` filled in, and ``dense`` doubled.

        Others overlap by default where ``compute`` stands in for an accelerator, which the codec does not hold up.
        Dense without a word on overlap runs both ways, because a comparison with only the one that does not
        overlap its communication with the backward pass flatters every other method.
        """
        cells: list[MethodSpec] = []
        for method in self.methods:
            params = dict(method.params)
            if "ratio" in METHODS[method.name]:
                params.setdefault("ratio", self.ratio)
            if method.name != "dense" and "overlap" in METHODS[method.name]:
                params.setdefault("overlap", self.compute_s is not None)
            if method.name == "dense" and "overlap" not in params:
                cells += [MethodSpec(name="dense", params={"overlap": overlap}) for overlap in (False, True)]
            else:
                cells.append(MethodSpec(name=method.name, params=params))
        return tuple(cells)


def available_cores() -> int:
    """Cores that this process may run on (a container's cpuset included)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_scenario(overrides: Mapping[str, Any], config: Path | None = None) -> Scenario:
    """A scenario from a file (may be None) and the flags that were given, which win.

    Raises:
        UsageError: an unreadable file, an unknown key, a value out of range.
    """
    values = _read(config) if config is not None else {}
    for key, value in overrides.items():
        if key in _QUANTITIES:
            values.pop(_QUANTITIES[key][0], None)
        values[key] = value
    return validate(values, source=str(config) if config else None)


def validate(values: Mapping[str, Any], *, source: str | None = None) -> Scenario:
    """Check ``values``; every failure is one :class:`UsageError` that names its key."""
    prefix = f"{source}: " if source else ""
    try:
        return Scenario.model_validate(values)
    except UsageError as error:
        raise UsageError(prefix + error.message, hint=error.hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{prefix}{where} {first['input']!r}: {first['msg'].lower()}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line} is not YAML: {problem}") from error
    if isinstance(data, dict) and "schema_version" in data:
        data = data.get("scenario")
    if not isinstance(data, dict):
        raise UsageError(
            f"{path} holds no scenario", hint="write keys such as 'bandwidth: 1gbps', one on a line"
        )
    return {str(key): value for key, value in data.items() if key not in ("title", "question")}
