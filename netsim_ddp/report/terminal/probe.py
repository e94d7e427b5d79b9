"""A probe on a terminal or in a pipe: what was asked, a line per figure beside its target, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

from rich.console import Console

from netsim_ddp.report.tables import Table
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.probe import Bulk, Collective, Probe, slowest
from netsim_ddp.units import counted, format_bytes, format_rate


def render_probe(probe: Probe, console: Console) -> None:
    """Print ``probe`` to ``console``."""

    line = partial(print_line, console)
    line(_header(probe), "bold")
    print_table(console, (_figures(probe, spread=spread) for spread in (True, False)), header_style="dim")
    if probe.link.mechanism in ("tc", "host"):
        line(f"{probe.link.drops} drops, {probe.link.retransmits} retransmits")
    if probe.collectives:
        line("")
        print_table(console, [_collectives(probe.collectives)], header_style="dim")
    for warning in probe.warnings:
        line(f"warning: {warning}", "yellow")
    for sentence in _verdict(probe):
        line(sentence)


def _header(probe: Probe) -> str:
    link = probe.link
    asked = f"asked {link.shape}" if link.shape else "no rate asked"
    congestion = f", {link.congestion}" if link.congestion else ""
    return f"link {link.how}: {asked}, {counted(probe.workers, 'worker')}{congestion}"


def _figures(probe: Probe, *, spread: bool) -> Table:
    rows: list[tuple[str, ...]] = []

    def row(name: str, scale: float, samples: Sequence[float], target: float | None) -> None:
        value, low, high = (each / scale for each in (median(samples), min(samples), max(samples)))
        aim, off = ("", "") if not target else (f"{target / scale:.4g}", f"{value * scale / target - 1:+.1%}")
        between = (f"{low:.4g}..{high:.4g}",) if spread else ()
        rows.append((name, f"{value:.4g}", *between, aim, off))

    for pair in probe.alone:
        title = f"bulk, rank {pair.sender} to {pair.receiver}, Mbit/s"
        row(title, 1e6, pair.samples_bps, pair.ceiling_bps)
    if (worst := slowest(probe.together)) is not None:
        row("all at once, slowest, Mbit/s", 1e6, worst.samples_bps, worst.ceiling_bps)
    for message in probe.messages:
        row(f"{format_bytes(message.size_bytes)} after idle, ms", 1e-3, message.samples_s, message.ideal_s)
    if probe.round_trip is not None:
        row("round trip, ms", 1e-3, probe.round_trip.samples_s, probe.round_trip.asked_s)
    return Table(("", "median", *(("lowest..highest",) if spread else ()), "target", "off"), rows)


def _collectives(rows: Sequence[Collective]) -> Table:
    """nccl-tests' columns; sizes in bytes, times in us, rates in GB/s as there."""
    texts = [
        (
            row.operation, str(row.size_bytes), str(row.count), row.type, f"{row.time_s * 1e6:.0f}",
            f"{row.algbw_bps / 8e9:.4f}", f"{row.busbw_bps / 8e9:.4f}", str(row.wrong),
        )
        for row in rows
    ]  # fmt: skip
    return Table(
        ("operation", "size", "count", "type", "time us", "algbw GB/s", "busbw GB/s", "#wrong"),
        texts,
        left=(0, 3),
    )


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
