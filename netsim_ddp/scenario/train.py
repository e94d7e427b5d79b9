"""What ``netsim train`` runs: whole trainings of one model, one per method and seed, on equal terms."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from netsim_ddp.errors import UsageError
from netsim_ddp.link.options import LinkOptions, Spelling
from netsim_ddp.methods import takes
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.options import Options, above_zero, whole
from netsim_ddp.origin import Origin
from netsim_ddp.scenario.settings import LEARNING_RATES, Settings, available_cores, no_recording, refuse
from netsim_ddp.units import counted, parse_ratio

TUNING_OFFSET = 10_000
"""The seed that learning rates are tuned on is this far from the first that is evaluated."""
_RATE = above_zero(LEARNING_RATES["sgd"], "the learning rate of this method alone", example="0.05")
LINK_KEYS = frozenset(LinkOptions.model_fields) - {"link"}
"""Fields that ask for an emulated link when they are set."""


def _every(value: Any, *, what: str) -> tuple[int | None, int | None]:
    """``2epochs`` or ``50steps``."""
    match = re.fullmatch(r"0*([1-9]\d{0,8})\s*(epoch|step)s?", str(value).strip().lower())
    if match is None:
        raise UsageError(f"{what} {value!r} is no interval", hint="write for example 1epoch or 50steps")
    return (int(match[1]), None) if match[2] == "epoch" else (None, int(match[1]))


def _accuracy(value: Any, *, what: str) -> tuple[float]:
    return (parse_ratio(value, what=what),)


def _rates(value: Any, *, what: str) -> tuple[list[float]]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        return ([_RATE.typed("lr", part) for part in parts],)
    except UsageError as error:
        raise UsageError(f"{what}: {error.message}", hint="write for example 0.03,0.1,0.3") from None


class TrainScenario(Settings):
    """One experiment: the model and its data, the optimizer, the methods, and how many seeds."""

    spellings: ClassVar[Mapping[str, Spelling]] = {
        **Settings.spellings,
        "checkpoint_every": Spelling(("checkpoint_epochs", "checkpoint_steps"), _every),
        "target_accuracy": Spelling(("target",), _accuracy),
        "tune_lr": Spelling(("tuned_rates",), _rates),
    }
    examples: ClassVar[Mapping[str, str]] = {
        **Settings.examples,
        "checkpoint_every": "1epoch",
        "target_accuracy": "95%",
        "tune_lr": "0.03,0.1,0.3",
        "clip_norm": "1",
        "step_epochs": "5",
        "steps_per_epoch": "20",
        "checkpoint": "run1",
        "log_dir": "logs",
    }
    method_options: ClassVar[Options] = {
        "lr": _RATE,
        "freeze_after": whole(
            0, "dense steps before Adam's momentum is what is compressed", least=1, example=100
        ),
    }

    batch_size: int = Field(default=16, ge=1, le=65536)
    momentum: float = Field(default=0.9, ge=0, lt=1, allow_inf_nan=False)
    repeats: int = Field(default=1, ge=1, le=1000)
    """Seeds: ``seed``, ``seed + 1`` ...; each has its own split of the data, parameters and order."""
    epochs: int = Field(default=10, ge=1, le=10**6)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    step_epochs: int | None = Field(default=None, ge=1)
    """``step``: epochs between two cuts by ``gamma``; by default a third of all."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup_epochs: int = Field(default=0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(default=1, ge=1, le=65536)
    tuned_rates: tuple[float, ...] = ()
    tune_seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    target: float | None = Field(default=None, gt=0, le=1)
    checkpoint: str | None = None
    checkpoint_epochs: int | None = Field(default=None, ge=1)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    resume: bool = False
    resume_residuals: Literal["none", "drop", "sum"] = "none"
    log_dir: str | None = None

    @field_validator("checkpoint", "log_dir", "data_dir", "text")
    @classmethod
    def _names_something(cls, value: str | None, info: ValidationInfo) -> str | None:
        with Origin.of(info).naming(str(info.field_name)):
            if value is not None and not value.strip():
                raise UsageError(f"{info.field_name} names nothing", hint="name a folder or a file")
        return value

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        saves = bool(self.checkpoint_epochs or self.checkpoint_steps)
        refuse(
            info,
            no_recording(self.model),
            (
                "overlap",
                self.overlap == "on" or any(method.params.get("overlap") for method in self.methods),
                "netsim train exchanges gradients after the backward pass, not beside it",
                "leave overlap out; netsim run measures it",
            ),
            *(check for method in self.methods for check in self._freezing_checks(method)),
            (
                "resume",
                self.resume and self.checkpoint is None,
                "resume needs the folder of the checkpoints",
                "write checkpoint: FOLDER",
            ),
            (
                "checkpoint_every",
                saves and self.checkpoint is None,
                "checkpoint_every needs a folder to save checkpoints to",
                "add --checkpoint FOLDER",
            ),
            (
                "warmup_epochs",
                0 < self.epochs <= self.warmup_epochs,
                f"warmup_epochs {self.warmup_epochs} leaves nothing of {counted(self.epochs, 'epoch')}",
                f"write for example --warmup-epochs {self.epochs // 10}",
            ),
        )
        return self

    def _freezing_checks(self, method: MethodSpec) -> list[tuple[str, bool, str, str]]:
        """What ``freeze_after`` asks of the optimizer and of ``method``; see :func:`refuse`."""
        frozen = "freeze_after" in method.params
        sends_momentum = takes(method.name, "feedback") and not method.params.get("momentum")
        return [
            (
                "methods",
                frozen and self.optimizer == "sgd",
                "freeze_after is about Adam's second moment",
                "write --optimizer adam or adamw",
            ),
            (
                "methods",
                frozen and not sends_momentum,
                f"freeze_after compresses Adam's momentum, which {method.id!r} cannot",
                "write for example topk,freeze_after=100",
            ),
        ]

    @property
    def on_a_link(self) -> bool:
        """Whether an emulated link was asked for; training on the host's own loopback is the default."""
        return self.link != "none" and (self.link != "auto" or bool(LINK_KEYS & self.model_fields_set))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are evaluated."""
        return tuple(range(self.seed, self.seed + self.repeats))

    def resolved(self) -> TrainScenario:
        """This scenario with the defaults that depend on other values, or on this machine, filled in."""
        default_seed = (self.seed + TUNING_OFFSET) % 2**31 if self.tuned_rates else None
        every_is_set = self.checkpoint_epochs is not None or self.checkpoint_steps is not None
        return self.model_copy(
            update={
                **self.training(),
                "threads": self.threads or max(1, available_cores() // self.workers),
                "link": self.link if self.on_a_link else "none",
                "step_epochs": self.step_epochs or max(1, self.epochs // 3),
                "checkpoint_epochs": self.checkpoint_epochs if every_is_set or not self.checkpoint else 1,
                "tune_seed": default_seed if self.tune_seed is None else self.tune_seed,
                "methods": self.cells(),
            }
        )

    def cells(self) -> tuple[MethodSpec, ...]:
        """One spec per cell. Where SGD has momentum, a sparse method with feedback corrects it (Lin et al. 2018),
        unless it says ``momentum=0`` and leaves it to the optimizer. Under Adam and AdamW small parameters are sent
        whole, as in ``netsim run``."""
        found = ((each, self._with_momentum(each, self._with_ratio(each))) for each in self.methods)
        return tuple(
            MethodSpec(name=each.name, params=self._with_whole(each, params)) for each, params in found
        )

    def _with_momentum(self, method: MethodSpec, params: dict[str, Any]) -> dict[str, Any]:
        corrects = takes(method.name, "momentum") and params.get("feedback", True)
        if self.optimizer == "sgd" and self.momentum and corrects:
            params.setdefault("momentum", self.momentum)
        return params

    def rate_at(self, progress: float) -> float:
        """The learning rate of the step that starts ``progress`` epochs into the training, of a resolved scenario.

        A linear warm-up over ``warmup_epochs``, which ends at the full rate; then constant, half a cosine down to 0, or
        ``gamma`` times less every ``step_epochs``, counted from the start.

        Args:
            progress: in [0, epochs).
        """
        base, warmup = self.learning_rate, self.warmup_epochs
        if progress < warmup:
            # Not from zero: a first step with rate 0 would be a step thrown away.
            return float(base * max(progress / warmup, 0.01))
        if self.schedule == "cosine":
            share = (progress - warmup) / (self.epochs - warmup)
            return float(base * 0.5 * (1 + math.cos(math.pi * share)))
        if self.schedule == "step":
            assert self.step_epochs is not None, "resolved"
            return float(base * self.gamma ** int(progress / self.step_epochs))
        return float(base)

    def exchange_params(self, method: MethodSpec) -> dict[str, Any]:
        """What the communication method itself takes."""
        own = {*self.method_options, "overlap"}
        return {key: value for key, value in method.params.items() if key not in own}
