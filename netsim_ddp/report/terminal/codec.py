"""The table of ``netsim bench compress``, 80 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import median

from rich.console import Console
from rich.text import Text

from netsim_ddp.report.labels import DASH, clean, count_of
from netsim_ddp.results.codec import CodecRow, CodecTimes

_COLUMNS = (
    ("N", 6), ("ratio", 7), ("floor", 7), ("select", 8), ("floors", 8), ("encode", 7), ("decode", 7),
    ("copies", 7), ("topk", 7), ("argpart", 8), ("memory", 7),
)  # fmt: skip


def render_codec_times(times: CodecTimes, console: Console) -> None:
    """Print ``times``: one table for each device, number of threads and input."""
    rounds = max(len(row.select_s) for row in times.rows)
    console.print(
        Text(
            clean(
                f"values {times.values}, indices {times.indices} | ms, median of {rounds} interleaved rounds"
            )
        )
    )
    for (device, threads, name), group in groupby(
        times.rows, key=lambda row: (row.device, row.threads, row.input)
    ):
        rows = list(group)
        plural = "" if threads == 1 else "s"
        console.print(Text(clean(f"\n{device}, {threads} thread{plural}, {name}"), style="bold"))
        console.print(Text("".join(f"{title:>{width}}" for title, width in _COLUMNS), style="bold"))
        for row in rows:
            console.print(Text(_line(row)))
    console.print(
        Text(
            "\nfloor: residual.add_(grad). select: feedback and selection, then how many floors\n"
            "that is. topk, argpart: the same by torch.topk (how many times longer) and\n"
            "numpy.argpartition. memory: beside the output, as a part of the gradient's."
        )
    )


def _line(row: CodecRow) -> str:
    longer = row.topk_times
    memory = DASH if row.peak_bytes is None else f"{row.peak_bytes / (4 * row.numel):.0%}"
    cells = (
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
        memory,
    )
    return "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def _ms(samples: Sequence[float]) -> str:
    if not samples:
        return DASH
    value = median(samples) * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
