"""A result on a terminal or in a pipe: header, one table per link, warnings, verdict.

A narrow terminal drops or merges columns, the least telling first; nothing wraps, and the phases that stay
visible still add up to the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from netsim_ddp.names import is_own
from netsim_ddp.options import written
from netsim_ddp.report.assumptions import UNSHAPED, assumptions, played, queue_words, why_bucket
from netsim_ddp.report.labels import basis, count_of, step_header
from netsim_ddp.report.limits import late_words, named
from netsim_ddp.report.tables import columns_without, rows_of, table_of
from netsim_ddp.report.terminal.printing import print_block, print_line, print_table, shortened
from netsim_ddp.report.verdict import verdict
from netsim_ddp.results.claims import claims, fastest
from netsim_ddp.results.identity import groups, recipe
from netsim_ddp.results.labels import clean, group_label, label
from netsim_ddp.results.limits import short_of_line
from netsim_ddp.results.record import Cell, LinkRecord, Result
from netsim_ddp.results.summary import is_dense
from netsim_ddp.units import counted, format_rate

# Dropped in this order until the table fits. "wait", "opt" and "decmp" are merged into a neighbour, not lost.
DROPS = (
    "payload", "loss", "hidden", "reduction", "wait", "opt", "elapsed",
    "overlapped", "eff", "decmp", "sent", "other", "speedup", "compr", "comm", "compute",
)  # fmt: skip
_NARROW_LABEL = 24


def render_result(result: Result, console: Console, *, warnings: bool = True) -> None:
    """Print ``result``, whose cells carry their summaries, to ``console``.

    ``warnings`` is off where they have gone to stderr while the run went on.
    """

    line = partial(print_line, console)
    line(_header(result), "bold")
    parts = groups(result.cells)
    family = len(claims(result.cells))
    for cells in parts:
        if len(parts) > 1:
            line("")
            line(group_label(cells), "bold")
        line(_link_line([cell.link for cell in cells], why_bucket(cells[0], result), late_words(cells)))
        line(_execution_line(result, cells))
        if any(cell.summary for cell in cells):
            line("")
            line(basis(cells), "dim")
            _print_table(cells, fastest(cells, family), console)
    if warnings:
        print_block(console, [f"warning: {warning}" for warning in result.warnings], "yellow")
    print_block(console, verdict(result))


def _header(result: Result) -> str:
    scenario = result.scenario
    model = str(scenario.get("model", "model unknown"))
    if result.model_parameters:
        model += f" {count_of(result.model_parameters)} params"
    if is_own(str(dataset := scenario.get("dataset"))):
        model += f" on {dataset}"
    workers: Sequence[object] = sorted({cell.workers for cell in result.cells})
    workers = workers or [scenario.get("workers", "?")]
    ratios = dict.fromkeys(written(cell.params["ratio"]) for cell in result.cells if "ratio" in cell.params)
    steps, repeats = scenario.get("steps", "?"), scenario.get("repeats", "?")
    parts = (
        model,
        counted(workers, "worker"),
        *([f"ratio {', '.join(ratios)}"] if ratios else []),
        f"{counted([steps], 'step')} x {counted([repeats], 'run')}",
        f"seed {scenario.get('seed', '?')}",
        *recipe(scenario),
    )
    return clean(" | ".join(parts))


def _link_line(links: Sequence[LinkRecord], why_bucket: str, late: str = "") -> str:
    """What was asked for and what was there, over all cells of one group; rates in Mbit/s."""
    first = links[0]
    measured = [link.measured_bps for link in links if link.measured_bps is not None]
    got = "-".join(dict.fromkeys(_mbit(rate) for rate in (min(measured), max(measured)))) if measured else ""
    limited = " | HOST-LIMITED" if any(link.host_limited for link in links) else ""
    if together := [link.together_bps for link in links if short_of_line(link) and link.together_bps]:
        limited += f": all ranks at once get {_mbit(min(together))}"
    if what := UNSHAPED.get(first.mechanism):
        return f"link not shaped: {what}{f', {got} Mbit/s measured' if got else ''}{limited}"
    text = f"link {first.how}{why_bucket}: {_unequal(first)}asked {_mbit(first.requested_bps)}"
    text += f", got {got} Mbit/s" if got else " Mbit/s"
    if first.ceiling_bps is not None:
        text += f" (ceiling {_mbit(first.ceiling_bps)})"
    if first.mechanism == "bucket":
        return f"{text}; bytes are charged, not measured{f'; {late}' if late else ''}{limited}"
    drops, retransmits = sum(link.drops for link in links), sum(link.retransmits for link in links)
    told = (counted(drops, "drop"), counted(retransmits, "retransmit"), *queue_words(first))
    return f"{text}, {', '.join(told)}{limited}"


def _unequal(link: LinkRecord) -> str:
    """What a single rate does not tell of the link: directions, slow ranks, delays, changes."""
    if link.requested_bps is None or link.shape in (None, format_rate(link.requested_bps)):
        return ""
    shape = clean(str(link.shape))
    slowest = " up, " in shape or "rank " in shape
    return f"{shape}; {'at first ' if link.varies else 'slowest ' if slowest else ''}"


def _mbit(rate: float | None) -> str:
    if rate is None:
        return "?"
    value = rate / 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _execution_line(result: Result, cells: Sequence[Cell]) -> str:
    """How the steps were executed, and what was emulated or substituted in them."""
    cores = result.environment.get("cores", result.environment.get("cpu_count"))
    ranks = counted(cells[0].workers, "rank")
    execution, *others = assumptions(cells, result, without=("link",))
    parts = [
        f"{execution.upper()}: {ranks}" + (f" on {cores} core{'s' * (cores != 1)}" if cores else ""),
        *others,
    ]
    if any(not cell.substituted for cell in cells if not is_dense(cell)):
        threads = sorted({cell.threads for cell in cells})
        count = counted(threads, "thread")
        parts.append(f"codec on {cells[0].device.upper()}, {count}")
    if how := played(cells):
        parts.append(f"local work measured {how}")
    return clean(" | ".join(parts))


def _print_table(cells: Sequence[Cell], best: Cell | None, console: Console) -> None:
    """Print the widest table that fits the console."""

    def name(cell: Cell) -> str:
        text = shortened(named(cell, label(cell, cells)), console, _NARROW_LABEL)
        return f"{text} (fastest)" if cell is best else text

    rows, replayed = rows_of(cells, name), cells[0].execution == "replayed"
    variants = (
        table_of(columns_without(frozenset(DROPS[:count]), step_header(cells), replayed=replayed), rows)
        for count in range(len(DROPS) + 1)
    )
    print_table(console, variants, gap=1, bold=[row.cell is best for row in rows])
