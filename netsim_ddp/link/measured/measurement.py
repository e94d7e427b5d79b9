"""What a measurement of a real network comes to, and the link profile that delivers the same.

What is measured is goodput. The profile's rate is the line rate whose TCP goodput that is, so that a link made from
the profile delivers what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

from pydantic import ValidationError

from netsim_ddp.errors import UsageError
from netsim_ddp.link.options import SPELLINGS, LinkOptions
from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE
from netsim_ddp.units import format_duration, format_rate

SHORTEST_DELAY_S = 0.1e-3  # below it the emulated link's own round trip is as long


@dataclass(frozen=True)
class Goodput:
    """Of one direction, bit/s, and between which values its samples lie, where there are several."""

    bps: float
    low_bps: float | None = None
    high_bps: float | None = None

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """The median of ``samples``, which are equally good."""
        return cls(median(samples), min(samples), max(samples)) if len(samples) > 1 else cls(samples[0])

    def __str__(self) -> str:
        shown = format_rate(self.bps)
        if self.low_bps is None or self.high_bps is None:
            return shown
        low, high = format_rate(self.low_bps), format_rate(self.high_bps)
        return shown if low == high else f"{shown} ({low} to {high})"


@dataclass(frozen=True)
class Measurement:
    """Goodput there, and back where it was measured apart; the way from one end to the other and how far it varies,
    seconds, where the measurement shows that; and where it comes from. ``remarks`` are what a reader must know."""

    up: Goodput
    source: str
    down: Goodput | None = None
    delay_s: float | None = None
    jitter_s: float | None = None
    remarks: tuple[str, ...] = ()

    def profile(self) -> dict[str, str]:
        """The keys of a link profile.

        Raises:
            UsageError: no link can be what was measured.
        """
        sides = [self.up] if self.down is None else [self.up, self.down]
        about = [f"{name} {side}" for name, side in zip(("goodput", "back"), sides, strict=False)]
        if self.delay_s is not None:
            about.append(f"one way {format_duration(self.delay_s)}")
        values = {
            "about": ", ".join([*about, *self.remarks]),
            "source": self.source,
            "bandwidth": ":".join(dict.fromkeys(_rate(side.bps) for side in sides)),
        }
        if self.delay_s is not None and self.delay_s >= SHORTEST_DELAY_S:
            values["delay"] = f"{self.delay_s * 1e6:.0f}us"
            if self.jitter_s is not None and self.jitter_s >= SHORTEST_DELAY_S:
                values["jitter"] = f"{min(self.jitter_s, self.delay_s) * 1e6:.0f}us"
        self._check(values)
        return values

    def _check(self, values: dict[str, str]) -> None:
        """Whatever a file says, a profile that is written is one that netsim takes."""
        fields: dict[str, Any] = {}
        try:
            for key in ("bandwidth", "delay", "jitter"):
                if key in values:
                    fields |= zip(
                        SPELLINGS[key].fields,
                        SPELLINGS[key].parse(values[key], what=f"a {key} of"),
                        strict=True,
                    )
            LinkOptions(**fields).spec_for(2)
        except UsageError as error:
            raise UsageError(f"{self.source}: {error.message}", hint="repeat the test") from None
        except ValidationError as error:
            first = error.errors()[0]
            said = f"{first['loc'][0]} {first['input']}: {first['msg'].lower()}"
            raise UsageError(f"{self.source}: no link has {said}", hint="repeat the test") from None


def _rate(goodput_bps: float) -> str:
    """The line rate of ``goodput_bps``, to the kbit/s where that is exact enough."""
    line_bps = goodput_bps * SEGMENT_WIRE / SEGMENT_PAYLOAD
    return f"{line_bps / 1e3:.0f}kbps" if line_bps >= 1e6 else f"{line_bps:.0f}bps"
