"""A probe on a terminal or in a pipe: what was asked, a line per figure beside its target, and a verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from netsim_ddp.report.labels import clean
from netsim_ddp.results.probe import Bulk, Collective, Probe, slowest
from netsim_ddp.units import format_bytes, format_rate


def render_probe(probe: Probe, console: Console) -> None:
    """Print ``probe`` to ``console``."""

    def line(text: str, style: str = "") -> None:
        wrapped = textwrap.fill(clean(text), console.width, break_long_words=False, break_on_hyphens=False)
        console.print(Text(wrapped, style=style))

    line(_header(probe), "bold")
    table = _figures(probe, spread=True)
    free = console.options.update(max_width=10_000)  # what it wants, not what rich would squeeze it to
    fits = console.measure(table, options=free).maximum <= console.width
    console.print(table if fits else _figures(probe, spread=False))
    if probe.link.mechanism in ("tc", "host"):
        line(f"{probe.link.drops} drops, {probe.link.retransmits} retransmits")
    if probe.collectives:
        line("")
        console.print(_collectives(probe.collectives))
    for warning in probe.warnings:
        line(f"warning: {warning}", "yellow")
    for sentence in _verdict(probe):
        line(sentence)


def _header(probe: Probe) -> str:
    link = probe.link
    asked = f"asked {link.shape}" if link.shape else "no rate asked"
    parts = [f"link {link.how}: {asked}", f"{probe.workers} workers"]
    if link.congestion:
        parts.append(link.congestion)
    return ", ".join(parts)


def _figures(probe: Probe, *, spread: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for name in ("median", *(("lowest..highest",) if spread else ()), "target", "off"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(name: str, scale: float, samples: Sequence[float], target: float | None) -> None:
        value, low, high = (each / scale for each in (median(samples), min(samples), max(samples)))
        aim, off = ("", "") if not target else (f"{target / scale:.4g}", f"{value * scale / target - 1:+.1%}")
        between = (f"{low:.4g}..{high:.4g}",) if spread else ()
        table.add_row(name, f"{value:.4g}", *between, aim, off)

    for pair in probe.alone:
        name = f"bulk, rank {pair.sender} to {pair.receiver}, Mbit/s"
        row(name, 1e6, pair.samples_bps, pair.ceiling_bps)
    if (worst := slowest(probe.together)) is not None:
        row("all at once, slowest, Mbit/s", 1e6, worst.samples_bps, worst.ceiling_bps)
    for message in probe.messages:
        name = f"{format_bytes(message.size_bytes)} after idle, ms"
        row(name, 1e-3, message.samples_s, message.ideal_s)
    if probe.round_trip is not None:
        row("round trip, ms", 1e-3, probe.round_trip.samples_s, probe.round_trip.asked_s)
    return table


def _collectives(rows: Sequence[Collective]) -> Table:
    """nccl-tests' columns; sizes in bytes, times in us, rates in GB/s as there."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("operation", "size", "count", "type", "time us", "algbw GB/s", "busbw GB/s", "#wrong"):
        table.add_column(name, justify="left" if name in ("operation", "type") else "right", no_wrap=True)
    for row in rows:
        rates = (f"{rate / 8e9:.4f}" for rate in (row.algbw_bps, row.busbw_bps))
        table.add_row(
            row.operation, str(row.size_bytes), str(row.count), row.type, f"{row.time_s * 1e6:.0f}", *rates,
            str(row.wrong),
        )  # fmt: skip
    return table


def _verdict(probe: Probe) -> list[str]:
    sentences = []
    worst: Bulk | None = slowest(probe.together)
    if worst is not None and (probe.link.host_limited or probe.link.mechanism == "none"):
        said = "HOST-LIMITED: this host carries" if probe.link.host_limited else "this host carries"
        total = sum(row.median_bps for row in probe.together)
        sentences.append(
            f"{said} {format_rate(worst.median_bps)} per rank with all {probe.workers} sending, "
            f"{format_rate(total)} together."
        )
    if probe.link.ceiling_bps is not None and not probe.off_target:
        sentences.append("on target.")
    return sentences
