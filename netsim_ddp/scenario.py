"""What to run: a frozen, validated :class:`Scenario` from flags, a YAML file or a result file.

Precedence is CLI > file > default. The keys of a file are the long flags with underscores; quantities may be
written as people do (``bandwidth: 1gbps``) or resolved, with the unit in the key (``bandwidth_bps:
1000000000``), which is what result files hold. This module imports neither torch nor a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from netsim_ddp.errors import UsageError
from netsim_ddp.link.options import (
    EXAMPLES,
    SPELLINGS,
    LinkOptions,
    Spelling,
    duration,
    with_profile,
    without_link,
)
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import MethodSpec, method_of, takes
from netsim_ddp.names import check_dataset, check_model, default_dataset, suggest
from netsim_ddp.origin import Origin
from netsim_ddp.results.codec import Substitute, substitute
from netsim_ddp.results.codec import load as load_times
from netsim_ddp.units import parse_ratio

MAX_WORKERS = 64
MAX_SECONDS = 1e7  # a third of a year; sockets refuse to wait much longer


_SPELLINGS: Mapping[str, Spelling] = {
    **SPELLINGS,
    "compute": Spelling(("compute_s",), duration),
    "timeout": Spelling(("timeout_s",), duration),
    "time_budget": Spelling(("time_budget_s",), duration),
}


class Scenario(LinkOptions):
    """One run: the model, the link, the methods and how often. Every field is printed and saved."""

    model: str = "simple_cnn"
    dataset: str | None = None
    batch_size: int = Field(default=32, ge=1, le=65536)
    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    compute_s: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)
    workers: int = Field(default=4, ge=1, le=MAX_WORKERS)
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    execution: Literal["auto", "concurrent", "replayed"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    methods: tuple[MethodSpec, ...] = (MethodSpec(name="dense"), MethodSpec(name="topk"))
    ratio: float = 0.01
    overlap: Literal["auto", "on", "off"] = "auto"
    steps: int = Field(default=20, ge=1, le=10**6)
    warmup: int = Field(default=3, ge=0, le=10**6)
    repeats: int = Field(default=3, ge=1, le=1000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    statistics: Literal["none", "total", "layers"] = "none"
    codec_from: Substitute | None = None
    """Times of ``netsim bench compress`` that stand in for those measured here: a file, or what was read of it."""
    timeout_s: float = Field(default=60.0, gt=0, le=MAX_SECONDS, allow_inf_nan=False)
    time_budget_s: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any, info: ValidationInfo) -> Any:
        origin = Origin.of(info)
        values = dict(data)
        for key in values:
            if key not in cls.model_fields and key not in _SPELLINGS:
                with origin.naming(key):
                    resolved = {name for spelling in _SPELLINGS.values() for name in spelling.fields}
                    known = {*(cls.model_fields.keys() - resolved), *_SPELLINGS}
                    raise UsageError(f"unknown key {key!r}", hint=suggest(key, known))
            if key == "overlap" and isinstance(values[key], bool):  # YAML reads on as true
                values[key] = "on" if values[key] else "off"
            if isinstance(values[key], bool):  # pydantic would read yes as 1
                with origin.naming(key):
                    raise UsageError(f"{key} is not a switch", hint=origin.example(key))
        if "timeline" in values and "trace" in values:
            raise UsageError(
                "timeline and trace both say how the link changes", hint="leave one of them away"
            )
        for name, spelling in _SPELLINGS.items():
            if name not in values:
                continue
            with origin.naming(name):
                if twice := [field for field in spelling.fields if field in values and field != name]:
                    raise UsageError(f"{name} and {twice[0]} are the same thing", hint=f"keep {name}")
                parsed = spelling.parse(values.pop(name), what=origin.label(name))
                values |= zip(spelling.fields, parsed, strict=True)
        return {key: value for key, value in values.items() if value is not None}

    @field_validator("model", "dataset")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        with Origin.of(info).naming(str(info.field_name)):
            if value is None:
                return None
            return check_model(value) if info.field_name == "model" else check_dataset(value)

    @field_validator("ratio", mode="before")
    @classmethod
    def _ratio(cls, value: Any, info: ValidationInfo) -> float:
        origin = Origin.of(info)
        with origin.naming("ratio"):
            return parse_ratio(value, what=origin.label("ratio"))

    @field_validator("codec_from", mode="before")
    @classmethod
    def _codec_times(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str | Path):
            return value
        with Origin.of(info).naming("codec_from"):
            path = Path(value)
            threads = info.data.get("threads") or available_cores()
            return substitute(load_times(path), path.name, threads)

    @model_validator(mode="after")
    def _substituted_times_are_replayed(self, info: ValidationInfo) -> Self:
        if self.codec_from is not None and self.execution == "concurrent":
            with Origin.of(info).naming("execution"):
                raise UsageError(
                    "codec times can be substituted only in replayed execution",
                    hint="write --execution replayed",
                )
        return self

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any, info: ValidationInfo) -> Any:
        with Origin.of(info).naming("methods"):
            items = [value] if isinstance(value, str) else value
            if not isinstance(items, list | tuple):
                raise UsageError(f"methods {value!r} is not a list", hint="write for example [dense, topk]")
            if not items:
                raise UsageError("no method to run", hint="write for example --method dense --method topk")
            return [method_of(item) for item in items]

    @model_validator(mode="after")
    def _no_cell_twice(self, info: ValidationInfo) -> Self:
        ids = [method.id for method in self.cells()]
        if repeated := sorted({name for name in ids if ids.count(name) > 1}):
            with Origin.of(info).naming("methods"):
                raise UsageError(f"method {repeated[0]!r} is named twice", hint="name it once")
        return self

    def link_spec(self) -> LinkSpec:
        """The link that all of its cells run on."""
        return self.spec_for(self.workers)

    @model_validator(mode="after")
    def _link_can_exist(self, info: ValidationInfo) -> Self:
        with Origin.of(info).naming("bandwidth"):
            self.link_spec()
        return self

    def resolved(self) -> Scenario:
        """This scenario with the defaults that depend on other values, or on this machine, filled in."""
        cores = available_cores()
        execution = self.execution
        if execution == "auto":
            replay = self.workers > cores or self.codec_from is not None
            execution = "replayed" if replay else "concurrent"
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

        Others overlap as ``overlap`` says; by default where ``compute`` stands in for an accelerator, which the codec
        does not hold up. Dense without a word on overlap of its own runs both ways, because a comparison with only the
        one that does not overlap its communication with the backward pass flatters every other method.
        """
        overlap = self.overlap == "on" or (self.overlap == "auto" and self.compute_s is not None)
        cells: list[MethodSpec] = []
        for method in self.methods:
            params = dict(method.params)
            if takes(method.name, "ratio"):
                params.setdefault("ratio", self.ratio)
            if overlap and method.name != "dense" and takes(method.name, "overlap"):
                params.setdefault("overlap", params.get("scope") != "model")
            if method.name == "dense" and "overlap" not in params:
                cells += [MethodSpec(name="dense", params={"overlap": each}) for each in (False, True)]
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
    values = _read(config, overrides) if config is not None else {}
    if name := overrides.get("link_profile"):
        # A profile that is a flag replaces the file's whole link; the other flags replace what it says.
        values = with_profile(without_link(values), str(name))
    for key, value in overrides.items():
        if key in _SPELLINGS:
            for field in _SPELLINGS[key].fields:
                values.pop(field, None)
        values[key] = value
    return _validate(values, frozenset(overrides), str(config) if config else None)


def validate(values: Mapping[str, Any], *, source: str | None = None) -> Scenario:
    """Check ``values``; every failure is one :class:`UsageError` that names its key."""
    return _validate(values, frozenset(), source)


def _validate(values: Mapping[str, Any], flags: frozenset[str], source: str | None) -> Scenario:
    quantities = {name: spelling.fields[0] for name, spelling in _SPELLINGS.items()}
    origin = Origin(values, flags, source, quantities, _examples())
    try:
        return Scenario.model_validate(dict(values), context=origin)
    except ValidationError as error:
        raise origin.explain(error) from None


def _examples() -> dict[str, str]:
    defaults = {key: str(each.default) for key, each in Scenario.model_fields.items() if key != "methods"}
    resolved = {"compute_s": "0.05", "time_budget_s": "300"}
    written = EXAMPLES | {"compute": "50ms", "timeout": "60s", "time_budget": "5min"}
    return defaults | resolved | written | {"dataset": "digits", "methods": "[dense, topk]"}


def _read(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    hint = "name a scenario in YAML or a result file"
    try:
        data = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8", hint=hint) from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply to be a scenario", hint=hint) from error
    except yaml.YAMLError as error:
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        raise UsageError(f"{path}{line} is not YAML: {problem}", hint=hint) from error
    replayed = isinstance(data, dict) and "schema_version" in data  # everything in it is resolved
    if replayed:
        data = data.get("scenario")
        if isinstance(data, dict):
            _derive_again(data, overrides)
    if not isinstance(data, dict):
        raise UsageError(
            f"{path} holds no scenario", hint="write keys such as 'bandwidth: 1gbps', one on a line"
        )
    values = {str(key): value for key, value in data.items() if key not in ("title", "question")}
    if not replayed and isinstance(name := values.get("link_profile"), str):
        values = with_profile(values, name)
    return values


def _parse(text: str) -> Any:
    """JSON is YAML too, but yaml takes seconds for a result file of a few hundred steps."""
    if text.lstrip().startswith("{"):
        with suppress(ValueError):
            return json.loads(text)
    return yaml.safe_load(text)


def _derive_again(data: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """A result file holds resolved values. Those that followed from a value which a flag now changes must follow
    the flag, or ``--config result.json --ratio 0.05`` would run at the old ratio."""
    was_on = data.get("overlap") == "on" or (
        data.get("compute_s") is not None and data.get("overlap") != "off"
    )
    derived = {"ratio": data.get("ratio"), "overlap": True if was_on else None}
    methods = data.get("methods")
    for method in methods if isinstance(methods, list) else []:
        params = method.get("params") if isinstance(method, dict) else None
        for option in derived.keys() & overrides.keys():
            if (
                isinstance(params, dict)
                and method.get("name") != "dense"
                and params.get(option) == derived[option]
            ):
                params.pop(option, None)
    if "model" in overrides:
        data.pop("dataset", None)
    if "codec_from" in overrides:
        data.pop("execution", None)
    if "workers" in overrides:
        data.pop("threads", None)
        data.pop("execution", None)
