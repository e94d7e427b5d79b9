"""The link as its user writes it: the part of a scenario from which a :class:`LinkSpec` is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from netsim_ddp.errors import UsageError
from netsim_ddp.link.spec import LinkSpec, RankRate
from netsim_ddp.units import parse_directions


class SlowRank(BaseModel):
    """A rank with rates of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=0)
    up_bps: int = Field(ge=1)
    down_bps: int = Field(ge=1)


class LinkOptions(BaseModel):
    """What the link shall be; every field is the resolved form of a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: Literal["auto", "tc", "bucket", "none"] = "auto"
    bandwidth_bps: int = Field(default=10**9, ge=1)
    bandwidth_down_bps: int | None = Field(default=None, ge=1)
    slow_ranks: tuple[SlowRank, ...] = ()

    def spec_for(self, workers: int) -> LinkSpec:
        """The link of ``workers`` ranks.

        Raises:
            UsageError: a slow rank that is not among them.
        """
        for each in self.slow_ranks:
            if each.rank >= workers:
                ranks = f"0 to {workers - 1}" if workers > 1 else "0"
                raise UsageError(
                    f"slow rank {each.rank} does not exist: {workers} workers are ranks {ranks}",
                    hint="ranks count from 0",
                )
        slow = tuple(RankRate(each.rank, each.up_bps, each.down_bps) for each in self.slow_ranks)
        return LinkSpec(workers, self.bandwidth_bps, self.bandwidth_down_bps, slow)


class Spelling(NamedTuple):
    """A quantity as people write it: the fields that it becomes, and how."""

    fields: tuple[str, ...]
    parse: Any
    """``parse(value, what=...)`` answers one value per field."""


def _bandwidth(value: Any, *, what: str) -> tuple[int, int | None]:
    up, down = parse_directions(str(value), what=what)
    return up, None if down == up else down


def _slow_ranks(value: Any, *, what: str) -> tuple[list[dict[str, int]]]:
    items: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    found: dict[int, dict[str, int]] = {}
    for item in items:
        match = re.fullmatch(r"\s*(\d+)\s*=\s*(.+)", str(item))
        if match is None:
            raise UsageError(f"{what} {item!r} is not RANK=RATE", hint="write for example 3=100mbps")
        rank = int(match[1])
        if rank in found:
            raise UsageError(f"{what} names rank {rank} twice", hint="name it once")
        up, down = parse_directions(match[2], what=what)
        found[rank] = {"rank": rank, "up_bps": up, "down_bps": down}
    return ([found[rank] for rank in sorted(found)],)


SPELLINGS: Mapping[str, Spelling] = {
    "bandwidth": Spelling(("bandwidth_bps", "bandwidth_down_bps"), _bandwidth),
    "slow_rank": Spelling(("slow_ranks",), _slow_ranks),
}
EXAMPLES = {"bandwidth": "1gbps", "slow_rank": "3=100mbps"}
