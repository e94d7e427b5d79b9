"""A collection for two services that keep benchmarks over time: github-action-benchmark and Bencher.

Both know a benchmark by its name, so a name holds what identifies a cell and nothing that changes from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from netsim_ddp.report.assumptions import assumptions
from netsim_ddp.report.collection import Collection, Entry
from netsim_ddp.results.labels import axis_labels, clean, full_label, link_label, model_label
from netsim_ddp.results.record import Cell, Summary
from netsim_ddp.results.stats import half_width
from netsim_ddp.units import counted

# Bencher's limit for a name.
_LONGEST = 1024


def github_benchmark(collection: Collection) -> str:
    """``customSmallerIsBetter`` of benchmark-action/github-action-benchmark: name, unit, value, range, extra."""
    rows: list[dict[str, Any]] = []
    for name, entry, summary in _measured(collection):
        said = ", ".join(assumptions([entry.cell], entry.source.result))
        repeats, threads = counted(len(entry.cell.repeats), "repeat"), counted(entry.cell.threads, "thread")
        extra = f"{repeats}, {threads}, {said}, {entry.cell.id}"
        step: dict[str, Any] = {"name": f"{name}: step", "unit": "ms", "value": summary.step_s.median * 1e3}
        if half := half_width(summary.step_s):
            step["range"] = f"± {half * 1e3:.3g}"
        sent = {"name": f"{name}: sent", "unit": "B/step", "value": summary.tx_bytes_per_step}
        rows += [{**each, "extra": clean(extra)} for each in (step, sent)]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def bencher(collection: Collection) -> str:
    """Bencher Metric Format: name -> measure -> value and bounds. ``latency`` is its built-in measure, in ns."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, _, summary in _measured(collection):
        step = summary.step_s
        latency = {"value": step.median * 1e9}
        if step.ci_low < step.ci_high:
            latency |= {"lower_value": step.ci_low * 1e9, "upper_value": step.ci_high * 1e9}
        found[name[:_LONGEST]] = {
            "latency": latency,
            "wire-bytes": {"value": summary.tx_bytes_per_step},
            "payload-bytes": {"value": summary.payload_bytes_per_step},
        }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def benchmark_name(cell: Cell) -> str:
    """``simple_cnn, 4 workers, 1 Gbit/s, tc, replayed: topk,ratio=0.01``."""
    parts = [
        model_label(cell),
        counted(cell.workers, "worker"),
        link_label(cell),
        cell.link.mechanism,
        cell.execution,
    ]
    parts += [clean(way) for way in (cell.device, cell.backend) if way not in ("cpu", "gloo")]
    return f"{', '.join([*parts, *axis_labels(cell)])}: {full_label(cell)}"


def _measured(collection: Collection) -> Iterator[tuple[str, Entry, Summary]]:
    """Every cell with a step; a name that two cells share gets the file's name, or a number, as well."""
    seen: dict[str, int] = {}
    for entry in collection.entries:
        if entry.cell.summary is None:
            continue
        name = benchmark_name(entry.cell)
        if name in seen and len(collection.sources) > 1:
            name = f"{name} ({clean(entry.source.name)})"
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name} #{seen[name]}"), entry, entry.cell.summary
