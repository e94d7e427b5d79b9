"""The table of ``netsim bench compress``, 80 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import median

from rich.console import Console
from rich.text import Text

from netsim_ddp.report.labels import DASH, count_of
from netsim_ddp.report.tables import Table
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.codec import CodecRow, CodecTimes
from netsim_ddp.units import counted

_HEADERS = (
    "N", "ratio", "floor", "select", "floors", "encode", "decode", "copies", "topk", "argpart", "memory",
)  # fmt: skip


def render_codec_times(times: CodecTimes, console: Console) -> None:
    """Print ``times``: one table for each device, number of threads and input."""
    print_line(
        console,
        f"values {times.values}, indices {times.indices} | ms, median of "
        f"{max(len(row.select_s) for row in times.rows)} interleaved rounds",
    )
    for (device, threads, name), rows in groupby(
        times.rows, key=lambda row: (row.device, row.threads, row.input)
    ):
        print_line(console, f"{device}, {counted(threads, 'thread')}, {name}", "bold")
        print_table(console, [Table(_HEADERS, [_texts(row) for row in rows], left=())], gap=1)
    console.print(
        Text(
            "\nfloor: residual.add_(grad). select: feedback and selection, then how many floors\n"
            "that is. topk, argpart: the same by torch.topk (how many times longer) and\n"
            "numpy.argpartition. memory: beside the output, as a part of the gradient's."
        )
    )


def _texts(row: CodecRow) -> tuple[str, ...]:
    longer = row.topk_times
    return (
        count_of(row.numel),
        f"{row.ratio:g}",
        _ms(row.floor_s),
        _ms(row.select_s),
        f"{row.floors:.2f}x",
        _ms(row.encode_s),
        _ms(row.decode_s),
        _ms(row.copy_s),
        DASH if longer is None else f"{longer:.0f}x",
        _ms(row.argpartition_s),
        DASH if row.peak_bytes is None else f"{row.peak_bytes / (4 * row.numel):.0%}",
    )


def _ms(samples: Sequence[float]) -> str:
    if not samples:
        return DASH
    value = median(samples) * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
