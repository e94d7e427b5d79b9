"""How host-limited cells are shown: the mark at a method, a ratio as a bound, and the sentences that say why.

The rule itself is :mod:`netsim_ddp.results.limits`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.report.labels import DASH
from netsim_ddp.results.labels import label
from netsim_ddp.results.limits import exchange, short_of_line
from netsim_ddp.results.record import Bound, Cell
from netsim_ddp.units import counted, format_duration, format_rate

MARK = " (host-limited)"


def bounded(text: str, bound: Bound | None) -> str:
    """The ratio ``text`` as what it is: ``>=1.5x`` where the method is host-limited, ``<=1.5x`` where the baseline is,
    a dash where both are."""
    return DASH if bound == "none" else f"{bound or ''}{text}"


def named(cell: Cell, name: str) -> str:
    """``dense (host-limited)``."""
    return name + (MARK if cell.link.host_limited else "")


def limit_sentences(cells: Sequence[Cell]) -> list[str]:
    """Which of ``cells``, of one setting, the host limits, by how much, and what that means for their ratios."""
    limited = [cell for cell in cells if cell.link.host_limited and cell.summary]
    if not limited:
        return []
    advice = "Lower the bandwidth or the workers."
    link = limited[0].link
    shares = [share for cell in limited if (share := short_of_line(cell.link)) is not None]
    if shares:
        ceiling = link.ceiling_bps or 0.0
        return [
            f"Host-limited: with all ranks sending at once this host carries {format_rate(min(shares) * ceiling)} of "
            f"{format_rate(ceiling)}, so it, not the link, may set the pace of every method and no speedup is given. "
            f"{advice}"
        ]
    parts = []
    for cell in limited:
        found, name = exchange(cell), label(cell, cells)
        if found is None:
            parts.append(name)
            continue
        took, model = format_duration(found.took_s), format_duration(found.model_s)
        parts.append(f"{name} exchanges for {took} where the link's own model needs {model}")
    return [
        f"Host-limited: {'; '.join(parts)}: there the host, not the link, sets the pace. A speedup is then a bound: >= "
        f"where the method is limited, <= where what it is compared with is, none where both are. {advice}"
    ]


def credit_sentences(cells: Sequence[Cell]) -> list[str]:
    """Whose steps are too short since an idle link's saved credit carried part of their messages, and by how much."""
    parts = [
        f"of {label(cell, cells)} by {format_duration(found.early_s)} ({found.early_s / found.step_s:.1%})"
        for cell in cells
        if cell.summary and (found := exchange(cell)) is not None and found.early_s
    ]
    if not parts:
        return []
    return [
        f"Steps are too short: {', '.join(parts)}. After a pause the link lets through more than its rate for a moment "
        "(its credit), and that carried the beginning of their messages."
    ]


def late_words(cells: Sequence[Cell]) -> str:
    """``12 messages moved 3.4 ms late in all``: what the bucket's host delivered after its deadlines; else empty."""
    ranks = [rank for cell in cells for repeat in cell.repeats for rank in repeat.ranks]
    count, seconds = sum(rank.host_late_count for rank in ranks), sum(rank.host_late_s for rank in ranks)
    if not count:
        return ""
    return f"{counted(count, 'operation')} later than their deadline, {format_duration(seconds)} in all"
