"""What a measurement of step times and a training run have in common: model, ranks, methods, link.

Every settings class is frozen and validated. The keys of a file are the long flags with underscores; quantities may be
written as people do (``bandwidth: 1gbps``) or resolved, with the unit in the key (``bandwidth_bps: 1000000000``), which
is what result files hold. Nothing here imports torch or a model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from netsim_ddp.errors import UsageError
from netsim_ddp.link.options import EXAMPLES, SPELLINGS, LinkOptions, Spelling, duration
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import BASELINE, DEFAULT, takes
from netsim_ddp.methods.spec import MethodSpec, method_of
from netsim_ddp.names import (
    check_dataset,
    check_loss,
    check_model,
    default_dataset,
    fitted,
    is_recorded,
    names_a_loss,
    suggest,
)
from netsim_ddp.options import Options
from netsim_ddp.origin import Origin
from netsim_ddp.units import parse_ratio

MAX_WORKERS = 64
LEARNING_RATES: Mapping[str, float] = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
"""Defaults by optimizer."""
ADAM_DENSE_BELOW = 20_000
"""Under Adam and AdamW Top-K sends parameters of fewer entries whole: what helped most in reports/accuracy.md."""
MAX_SECONDS = 1e7  # a third of a year; sockets refuse to wait much longer


class Settings(LinkOptions):
    """What every run has; every field is printed and saved."""

    spellings: ClassVar[Mapping[str, Spelling]] = {
        **SPELLINGS,
        "timeout": Spelling(("timeout_s",), duration, "the longest time without progress of a rank"),
        "time_budget": Spelling(("time_budget_s",), duration, "when no further repeat is started"),
    }
    examples: ClassVar[Mapping[str, str]] = {
        **EXAMPLES,
        "timeout": "60s",
        "time_budget": "5min",
        "time_budget_s": "300",
        "dataset": "digits",
        "data_dir": "~/data",
        "text": "book.txt",
        "methods": "[dense, topk]",
        "loss_function": "my_module:loss",
    }

    method_options: ClassVar[Options] = {}
    """What every method takes here beside its own options."""

    model: str = "simple_cnn"
    dataset: str | None = None
    data_dir: str | None = None
    download: bool = False
    text: str | None = None
    batch_size: int = Field(default=32, ge=1, le=65536)
    loss_function: str = "cross-entropy"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    learning_rate: float = Field(default=LEARNING_RATES["sgd"], gt=0, allow_inf_nan=False)
    """Where it is not set, the optimizer's of :data:`LEARNING_RATES`."""
    momentum: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    workers: int = Field(default=4, ge=1, le=MAX_WORKERS)
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    methods: tuple[MethodSpec, ...] = (MethodSpec(name=BASELINE.name), MethodSpec(name=DEFAULT.name))
    ratio: float = 0.01
    overlap: Literal["auto", "on", "off"] = "auto"
    repeats: int = Field(default=3, ge=1, le=1000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    timeout_s: float = Field(default=60.0, gt=0, le=MAX_SECONDS, allow_inf_nan=False)
    time_budget_s: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any, info: ValidationInfo) -> Any:
        origin = Origin.of(info)
        values = dict(data)
        for key in values:
            if key not in cls.model_fields and key not in cls.spellings:
                with origin.naming(key):
                    raise UsageError(f"unknown key {key!r}", hint=suggest(key, cls.keys()))
            if key == "overlap" and isinstance(values[key], bool):  # YAML reads on as true
                values[key] = "on" if values[key] else "off"
            field = cls.model_fields.get(key)
            if isinstance(values[key], bool) and (field is None or field.annotation is not bool):
                with origin.naming(key):  # pydantic would read yes as 1
                    raise UsageError(f"{key} is not a switch", hint=origin.example(key))
        if names_a_loss(values.get("loss")):
            with origin.naming("loss"):
                raise UsageError(
                    f"loss {values['loss']!r} is a function, and loss is the share of packets that the link loses",
                    hint=f"write loss_function: {values['loss']}",
                )
        if "timeline" in values and "trace" in values:
            raise UsageError(
                "timeline and trace both say how the link changes", hint="leave one of them away"
            )
        for name, spelling in cls.spellings.items():
            if name not in values:
                continue
            with origin.naming(name):
                if twice := [field for field in spelling.fields if field in values and field != name]:
                    raise UsageError(f"{name} and {twice[0]} are the same thing", hint=f"keep {name}")
                parsed = spelling.values(
                    values.pop(name), what=origin.label(name), example=str(cls.examples.get(name, ""))
                )
                values |= zip(spelling.fields, parsed, strict=True)
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def keys(cls) -> set[str]:
        """What a file may say, as people write it."""
        resolved = {name for spelling in cls.spellings.values() for name in spelling.fields}
        return {*(cls.model_fields.keys() - resolved), *cls.spellings}

    @field_validator("model", "dataset", "loss_function")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        check = {"model": check_model, "dataset": check_dataset, "loss_function": check_loss}
        with Origin.of(info).naming(str(info.field_name)):
            return None if value is None else check[str(info.field_name)](value)

    @model_validator(mode="after")
    def _model_takes_the_data(self, info: ValidationInfo) -> Self:
        if is_recorded(self.model):
            return self
        dataset = self.dataset or default_dataset(self.model)
        with Origin.of(info).naming("dataset" if self.dataset else "model"):
            fitted(self.model, dataset)
        refuse(
            info,
            (
                "text",
                self.text is not None and dataset != "text",
                f"a text is read by the dataset text, not by {dataset}",
                "write --model transformer, or --dataset text with a model of your own",
            ),
        )
        return self

    def training(self) -> dict[str, Any]:
        """What is trained on what and how, as far as other values decide it: the fields that ``resolved`` fills in."""
        if is_recorded(self.model):
            return {}
        dataset = self.dataset or default_dataset(self.model)
        rate_is_set = "learning_rate" in self.model_fields_set
        return {
            "dataset": dataset,
            "model": fitted(self.model, dataset),
            "learning_rate": self.learning_rate if rate_is_set else LEARNING_RATES[self.optimizer],
        }

    @field_validator("ratio", mode="before")
    @classmethod
    def _ratio(cls, value: Any, info: ValidationInfo) -> float:
        origin = Origin.of(info)
        with origin.naming("ratio"):
            return parse_ratio(value, what=origin.label("ratio"))

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any, info: ValidationInfo) -> Any:
        with Origin.of(info).naming("methods"):
            items = [value] if isinstance(value, str) else value
            if not isinstance(items, list | tuple):
                raise UsageError(f"methods {value!r} is not a list", hint="write for example [dense, topk]")
            if not items:
                raise UsageError("no method to run", hint="write for example --method dense --method topk")
            return [method_of(item, cls.method_options) for item in items]

    @model_validator(mode="after")
    def _no_cell_twice(self, info: ValidationInfo) -> Self:
        ids = [method.id for method in self.cells()]
        for name in sorted(ids):
            refuse(info, ("methods", ids.count(name) > 1, f"method {name!r} is named twice", "name it once"))
        return self

    @model_validator(mode="after")
    def _link_can_exist(self, info: ValidationInfo) -> Self:
        with Origin.of(info).naming("bandwidth"):
            self.link_spec()
        return self

    def resolved(self) -> Settings:
        """These settings with the defaults that depend on other values, or on this machine, filled in."""
        return self.model_copy(update={"methods": self.cells()})

    def link_spec(self) -> LinkSpec:
        """The link that all of its cells run on."""
        spec = self.spec_for(self.workers)
        drawn = spec.loss > 0 or spec.jitter_s > 0  # else one link serves all seeds
        return replace(spec, seed=self.seed) if drawn else spec

    def cells(self) -> tuple[MethodSpec, ...]:
        """One spec per cell, with what they leave open filled in."""
        return tuple(MethodSpec(name=method.name, params=self._with_ratio(method)) for method in self.methods)

    @property
    def under_adam(self) -> bool:
        """Whether Adam or AdamW updates the parameters."""
        return self.optimizer != "sgd"

    def _with_whole(self, method: MethodSpec, params: dict[str, Any]) -> dict[str, Any]:
        """``params`` with small parameters sent whole where Adam takes the average (docs/training.md), unless the
        method says another ``dense_below``. Under ``freeze_after`` the momentum is what is compressed, and what selects
        over another scope has no such option."""
        apart = params.get("scope", "parameter") != "parameter" or "freeze_after" in params
        if self.under_adam and takes(method.name, "dense_below") and not apart:
            params.setdefault("dense_below", ADAM_DENSE_BELOW)
        return params

    def _with_ratio(self, method: MethodSpec) -> dict[str, Any]:
        return {**({"ratio": self.ratio} if takes(method.name, "ratio") else {}), **method.params}


def no_recording(model: str) -> tuple[str, bool, str, str]:
    """What :func:`refuse` says of ``model`` where there is no recording that would hold it."""
    return (
        "model",
        is_recorded(model),
        f"model {model!r} is in a recording, which only netsim run can play",
        "write netsim run --recording FILE",
    )


def refuse(info: ValidationInfo, *checks: tuple[str, bool, str, str]) -> None:
    """Raise a UsageError for the first of ``checks`` that is wrong: (key, whether it is, message, hint)."""
    for key, wrong, message, hint in checks:
        if wrong:
            with Origin.of(info).naming(key):
                raise UsageError(message, hint=hint)


def available_cores() -> int:
    """Cores that this process may run on (a container's cpuset included)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_at_once(workers: int, threads: int) -> int:
    """Returns how many of ``workers`` ranks of ``threads`` threads this machine has cores for; at least one."""
    return max(1, min(workers, available_cores() // threads))
