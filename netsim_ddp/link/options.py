"""The link as its user writes it: the part of a scenario from which a :class:`LinkSpec` is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from netsim_ddp.errors import UsageError
from netsim_ddp.link.profiles import profile
from netsim_ddp.link.spec import Change, LinkSpec, RankRate
from netsim_ddp.link.timeline import timeline, trace
from netsim_ddp.origin import Origin
from netsim_ddp.units import (
    format_duration,
    format_rate,
    parse_directions,
    parse_duration,
    parse_rate,
    parse_ratio,
    parse_size,
)

MAX_DELAY_S = 10.0


class SlowRank(BaseModel):
    """A rank with rates of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=0)
    up_bps: int = Field(ge=1)
    down_bps: int = Field(ge=1)


class TimelineChange(BaseModel):
    """Rates from a moment on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: float = Field(ge=0, allow_inf_nan=False)
    up_bps: int = Field(ge=1)
    down_bps: int = Field(ge=1)


class LinkOptions(BaseModel):
    """What the link shall be; every field is the resolved form of a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: Literal["auto", "tc", "bucket", "none", "host"] = "auto"
    bandwidth_bps: int = Field(default=10**9, ge=1)
    bandwidth_down_bps: int | None = Field(default=None, ge=1)
    slow_ranks: tuple[SlowRank, ...] = ()
    delay_s: float = Field(default=0.0, ge=0, le=MAX_DELAY_S, allow_inf_nan=False)
    jitter_s: float = Field(default=0.0, ge=0, le=MAX_DELAY_S, allow_inf_nan=False)
    loss: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    queue_s: float | None = Field(default=None, gt=0, le=MAX_DELAY_S, allow_inf_nan=False)
    congestion: Literal["cubic", "bbr", "reno"] | None = None
    timeline_changes: tuple[TimelineChange, ...] = ()
    timeline_period_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    peak_bps: int | None = Field(default=None, ge=1)
    credit_bytes: int | None = Field(default=None, ge=1, le=10**15)
    delay_by: Literal["auto", "netem", "tun"] = "auto"
    reorder: bool = False
    tcp: Literal["linux", "ideal"] = "linux"
    link_profile: str | None = None

    @field_validator("link", mode="before")
    @classmethod
    def _no_rate(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and any(char.isdigit() for char in value):
            origin = Origin.of(info)
            with origin.naming("link"):
                raise UsageError(
                    f"{origin.label('link')} {value!r} is not known here",
                    hint="--link says how the link is made: auto, tc, bucket or none; its rate is "
                    f"--bandwidth {value}",
                )
        return value

    def spec_for(self, workers: int) -> LinkSpec:
        """The link of ``workers`` ranks.

        Raises:
            UsageError: a slow rank that is not among them, jitter that would make a delay negative, or a rate that no
                link has.
        """
        if self.jitter_s > self.delay_s:
            raise UsageError(
                f"jitter {format_duration(self.jitter_s)} is more than the delay {format_duration(self.delay_s)}",
                hint=f"write for example --delay {self.jitter_s * 1e3:g}ms",
            )
        if self.reorder and not self.jitter_s:
            raise UsageError(
                "packets overtake each other only where their delays differ",
                hint="write for example --jitter 2ms, or leave --reorder away",
            )
        if (self.peak_bps is None) != (self.credit_bytes is None):
            missing, present = ("peak", "credit") if self.peak_bps is None else ("credit", "peak")
            raise UsageError(
                f"{present} needs {missing} beside it: together they are a token bucket",
                hint="write for example --peak 10gbps --credit 5GB",
            )
        if self.peak_bps is not None and self.timeline_changes:
            raise UsageError("a link has a timeline or a credit, not both", hint="leave one of them away")
        fastest = max(self.bandwidth_bps, self.bandwidth_down_bps or 0)
        if self.peak_bps is not None and self.peak_bps <= fastest:
            raise UsageError(
                f"the peak {format_rate(self.peak_bps)} is no more than the bandwidth {format_rate(fastest)}",
                hint="--bandwidth is what is left after it",
            )
        for each in self.slow_ranks:
            if each.rank >= workers:
                there = (
                    f"{workers} workers are ranks 0 to {workers - 1}" if workers > 1 else "1 worker is rank 0"
                )
                raise UsageError(
                    f"slow rank {each.rank} does not exist: {there}",
                    hint="ranks count from 0",
                )
        spec = LinkSpec(
            workers,
            self.bandwidth_bps,
            self.bandwidth_down_bps,
            tuple(RankRate(each.rank, each.up_bps, each.down_bps) for each in self.slow_ranks),
            delay_s=self.delay_s,
            jitter_s=self.jitter_s,
            loss=self.loss,
            queue_s=self.queue_s,
            congestion=self.congestion,
            timeline=tuple(Change(each.at_s, each.up_bps, each.down_bps) for each in self.timeline_changes),
            period_s=self.timeline_period_s,
            peak_bps=self.peak_bps,
            credit_bytes=self.credit_bytes,
            delay_by=self.delay_by,
            reorder=self.reorder,
            tcp=self.tcp,
        )
        spec.check_rates()
        return spec


class Spelling(NamedTuple):
    """A quantity as people write it: the fields that it becomes, and how."""

    fields: tuple[str, ...]
    parse: Any
    """``parse(value, what=...)`` returns one value per field."""
    meaning: str = ""
    """What it is, for somebody who wrote a word and must have meant something else: ``--loss mse``."""

    def values(self, value: Any, *, what: str, example: str) -> Iterable[Any]:
        """One value per field.

        Raises:
            UsageError: ``value`` does not read as one; a word is answered with what the flag is.
        """
        if value is None:  # ``bandwidth:`` with nothing after it
            raise UsageError(f"{what} has no value", hint=f"write for example {example}, or leave it away")
        if isinstance(value, bool):  # YAML's word for yes and no, on and off
            raise UsageError(f"{what} is not a switch", hint=f"write for example {example}")
        if isinstance(value, Mapping) and self.parse is not timeline:
            raise UsageError(f"{what} is a mapping, not a value", hint=f"write for example {example}")
        try:
            return list(self.parse(value, what=what))
        except UsageError as error:
            if not self.meaning or any(char.isdigit() for char in str(value)):
                raise
            raise UsageError(
                error.message, hint=f"it is {self.meaning}: write for example {example}"
            ) from None


def _bandwidth(value: Any, *, what: str) -> tuple[int, int | None]:
    up, down = parse_directions(str(value), what=what)
    return up, None if down == up else down


def _slow_ranks(value: Any, *, what: str) -> tuple[list[dict[str, int]]]:
    found: dict[int, dict[str, int]] = {}
    for item in value if isinstance(value, list | tuple) else [value]:
        match = re.fullmatch(r"\s*(\d{1,9})\s*=\s*(.+)", str(item))
        if match is None:
            raise UsageError(f"{what} {item!r} is not RANK=RATE", hint="write for example 3=100mbps")
        rank = int(match[1])
        if rank in found:
            raise UsageError(f"{what} names rank {rank} twice", hint="name it once")
        up, down = parse_directions(match[2], what=what)
        found[rank] = {"rank": rank, "up_bps": up, "down_bps": down}
    return ([found[rank] for rank in sorted(found)],)


def _single(parse: Callable[..., float], value: Any, *, what: str) -> tuple[float]:
    """What ``parse`` reads ``value`` as, for a quantity of one field."""
    return (parse(str(value), what=what),)


duration = partial(_single, parse_duration)


def _loss(value: Any, *, what: str) -> tuple[float]:
    """The share that ``value`` says: a text with its unit, or the number of a result file, which needs none."""
    text = str(value).strip()
    if text.rstrip("%") in ("0", "0.0"):
        return (0.0,)
    try:
        share = parse_ratio(value, what=what)
        if isinstance(value, str) and not text.endswith("%"):
            raise UsageError(
                f"{what} {text!r} has no unit",
                hint=f"write {text}%, or {share * 100:.6g}% if it is a share of 1",
            )
        return (share,)
    except UsageError as error:
        if "is not a fraction" not in error.message:
            raise
        raise UsageError(
            f"{what} {value!r} is not a share of packets", hint="write for example 0.1%"
        ) from None


SPELLINGS: Mapping[str, Spelling] = {
    "bandwidth": Spelling(("bandwidth_bps", "bandwidth_down_bps"), _bandwidth),
    "slow_rank": Spelling(("slow_ranks",), _slow_ranks),
    "delay": Spelling(("delay_s",), duration, "how long a packet travels between two ranks"),
    "jitter": Spelling(("jitter_s",), duration, "how far a packet's delay is from --delay"),
    "loss": Spelling(
        ("loss",), _loss, "the share of the link's packets that vanish (a training's loss is loss_function)"
    ),
    "queue": Spelling(("queue_s",), duration, "the longest that a packet waits in the link's queue"),
    "timeline": Spelling(("timeline_changes", "timeline_period_s"), timeline),
    "trace": Spelling(("timeline_changes", "timeline_period_s"), trace),
    "peak": Spelling(("peak_bps",), partial(_single, parse_rate), "the link's rate while it has credit"),
    "credit": Spelling(
        ("credit_bytes",), partial(_single, parse_size), "the bytes that the link lets through at --peak"
    ),
}
EXAMPLES = {
    "bandwidth": "1gbps",
    "slow_rank": "3=100mbps",
    "delay": "20ms",
    "jitter": "2ms",
    "loss": "0.1%",
    "queue": "100ms",
    "congestion": "cubic",
    "delay_by": "tun",
    "tcp": "ideal",
    "peak": "10gbps",
    "credit": "5GB",
    "link_profile": "lan-1g",
}


def with_profile(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``values``, and what profile ``name`` says about everything that they leave open."""
    given = set(values) | {field for key in values if key in SPELLINGS for field in SPELLINGS[key].fields}
    found = dict(values) | {"link_profile": name}
    for key, value in as_typed(profile(name)).items():
        if key not in SPELLINGS:
            found.setdefault(key, value)
            continue
        parsed = SPELLINGS[key].values(
            value, what=f"link profile {name}: {key}", example=EXAMPLES.get(key, "'name of a file'")
        )
        if given.isdisjoint(SPELLINGS[key].fields):
            found |= zip(SPELLINGS[key].fields, parsed, strict=True)
    return found


def as_typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a file that somebody wrote, its numbers as texts: they need their units as on a command line."""
    return {
        key: str(value)
        if key in SPELLINGS and isinstance(value, int | float) and not isinstance(value, bool)
        else value
        for key, value in values.items()
    }


def without_link(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without anything about the link but its mechanism."""
    ours = {*LinkOptions.model_fields, *SPELLINGS} - {"link"}
    return {key: value for key, value in values.items() if key not in ours}
