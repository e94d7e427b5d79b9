"""Colours, markers and hatches: one of each per method, the same in every plot, on light and on dark ground.

Text has a contrast of at least 4.5 to its ground and everything that is drawn at least 3 (WCAG 2.1 AA, 1.4.3 and
1.4.11; tests/test_report_style.py computes them). Neighbouring hues differ for the colour-blind too, after Okabe and
Ito ("Color Universal Design", 2008), and every method has a marker, every phase a hatch, that tells it without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Marker = Literal["circle", "square", "triangle", "diamond", "down"]
Hatch = Literal["none", "up", "down", "across", "upright", "dots"]

MARKERS: tuple[Marker, ...] = ("circle", "square", "triangle", "diamond", "down")
PHASE_HATCHES: tuple[Hatch, ...] = ("none", "up", "none", "upright", "down", "across", "dots")
"""Of the phases in the order of ``results.summary.PHASES``."""


@dataclass(frozen=True)
class Theme:
    """Colours on one ground. ``methods[0]`` is dense's, a grey; ``phases`` in the order of ``PHASES``."""

    ground: str
    panel: str
    ink: str
    muted: str
    rule: str
    accent: str
    warn: str
    methods: tuple[str, ...]
    phases: tuple[str, ...]

    def variables(self) -> str:
        """As CSS custom properties."""
        named = {
            "ground": self.ground, "panel": self.panel, "ink": self.ink, "muted": self.muted,
            "rule": self.rule, "accent": self.accent, "warn": self.warn,
            **{f"m{number}": colour for number, colour in enumerate(self.methods)},
            **{f"p{number}": colour for number, colour in enumerate(self.phases)},
        }  # fmt: skip
        return "".join(f"--{name}:{colour};" for name, colour in named.items())


LIGHT = Theme(
    ground="#ffffff", panel="#f5f6f8", ink="#1b1f24", muted="#565f6b", rule="#d5d9df", accent="#0a5c99",
    warn="#8f4300",
    methods=("#50565e", "#0072b2", "#c44e00", "#00805e", "#a8457f", "#8a6100", "#5b4fa8", "#267a8a", "#7a3b2e"),
    phases=("#5b6b7f", "#c44e00", "#0072b2", "#3d8fc0", "#8a6100", "#a8457f", "#767676"),
)  # fmt: skip
DARK = Theme(
    ground="#14171a", panel="#1d2126", ink="#e8eaed", muted="#a4adb8", rule="#3a4149", accent="#7cc0f5",
    warn="#f0a868",
    methods=("#b4bac2", "#56b4e9", "#f2874b", "#2fc79a", "#e79ac4", "#e6b84a", "#a79bf0", "#6ccad8", "#d0917f"),
    phases=("#93a3b8", "#f2874b", "#56b4e9", "#3f86b3", "#e6b84a", "#e79ac4", "#8c8c8c"),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How one method is drawn: ``colour`` numbers ``Theme.methods``."""

    colour: int
    marker: Marker


class Looks:
    """A look for every name of ``colours`` (dense first), and for any that is asked for beside them."""

    def __init__(self, colours: Sequence[str], dense: Sequence[str] = ()) -> None:
        hues = len(LIGHT.methods) - 1
        self._looks: dict[str, Look] = {}
        others = 0
        for name in colours:
            if name in dense and not self._looks:
                self._looks[name] = Look(0, MARKERS[0])
                continue
            # After the last hue they start again, one marker further: no two methods look the same before 40.
            shift = others // hues
            self._looks[name] = Look(1 + others % hues, MARKERS[(others + shift + 1) % len(MARKERS)])
            others += 1

    def of(self, name: str) -> Look:
        return self._looks.get(name, Look(0, MARKERS[0]))
