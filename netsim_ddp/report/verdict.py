"""Does it pay, against what, and what is missing: the sentences below every table.

Pure functions of a ``Result``; a sentence never claims a difference that the intervals do not separate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from netsim_ddp.report.wording import clean, group_name, groups, label, milliseconds, rounded, times
from netsim_ddp.results import stats
from netsim_ddp.results.record import Cell, Result, Summary
from netsim_ddp.results.summary import ALONE, baseline, is_dense
from netsim_ddp.units import format_bytes, format_duration

# Below this share of the dense step on the wire, the network is not what the user waits for.
BOTTLENECK_SHARE = 0.15


def verdict(result: Result) -> list[str]:
    """Does it pay, against what, and what is missing: whole sentences, each line on its own.

    Cells need their ``summary`` (``netsim_ddp.results.summary.summarise``).
    """
    lines: list[str] = []
    parts = groups(result.cells)
    for cells in parts:
        prefix = f"{group_name(cells)}: " if len(parts) > 1 else ""
        lines += [prefix + sentence for sentence in _group_verdict(cells)]
    measured = [cell for cell in result.cells if cell.summary]
    if measured and max(len(cell.repeats) for cell in measured) == 1:
        lines.append(f"One run each: no error bars. --repeats {stats.REPEATS_FOR_95} gives a 95% interval.")
    return lines + _missing(result, measured)


def _group_verdict(cells: Sequence[Cell]) -> list[str]:
    measured = [cell for cell in cells if cell.summary]
    if not measured:
        return []
    if measured[0].workers == 1:
        return [ALONE]
    rivals = [cell for cell in measured if not is_dense(cell)]
    rivals.sort(key=lambda cell: _summary(cell).step_s.median)
    plain = baseline(measured[0], measured, overlap=False)
    overlapped = baseline(measured[0], measured, overlap=True)
    dense = plain or overlapped
    if dense is None:
        return ["No speedup is given: no dense baseline ran here."]
    lines: list[str] = []
    limited = [cell for cell in (plain, overlapped) if cell and cell.link.host_limited]
    if limited:
        lines.append(
            "No speedup is given: with dense the host, not the link, sets the pace (it communicates for"
            " more than 1.05x the link's ideal). Lower the bandwidth or the workers."
        )
    else:
        lines += _bottleneck(dense, overlapped, alone=not rivals)
        lines += [_compare(rival, cells, dense, overlapped) for rival in rivals]
    if rivals:
        lines += _cost(rivals[0], cells)
    return lines


def _summary(cell: Cell) -> Summary:
    if cell.summary is None:
        raise ValueError(f"cell {cell.id} has no summary")
    return cell.summary


def _bottleneck(dense: Cell, overlapped: Cell | None, *, alone: bool) -> list[str]:
    """What the network costs dense, said where it is little, or where it is the whole answer."""
    if dense.link.mechanism == "host":
        return ["The network is your hosts' own, and was not shaped."]
    if dense.link.mechanism == "none":
        return ["The link is not shaped: these figures are this host's, not your network's."]
    share = _wire_share(dense)
    name = label(dense, [dense])
    if share < BOTTLENECK_SHARE:
        return [
            f"The network is not the bottleneck here: {name} spends {share:.0%} of its step on the wire;"
            f" no method can gain more than {1 / (1 - share):.2f}x by sending less."
        ]
    if overlapped and overlapped is not dense and (hidden := _wire_share(overlapped)) < BOTTLENECK_SHARE:
        return [
            f"Overlapped with its backward, dense spends only {hidden:.0%} of its step on the wire:"
            f" against it no method can gain more than {1 / (1 - hidden):.2f}x by sending less."
        ]
    if alone:
        return [f"{name} spends {share:.0%} of its step on the wire."]
    return []


def _wire_share(cell: Cell) -> float:
    """Fraction of the step in exposed communication, below 1 so that the bound it gives is finite."""
    summary = _summary(cell)
    step = summary.step_s.median
    return min(max(summary.communicate_s / step, 0.0), 0.999) if step > 0 else 0.0


def _compare(rival: Cell, cells: Sequence[Cell], dense: Cell, overlapped: Cell | None) -> str:
    """One method against dense, fp16 and overlapped dense."""
    name, mine, base = label(rival, cells), _summary(rival), _summary(dense)
    against = label(dense, [dense])
    if not stats.resolved(mine.step_s, base.step_s):
        return (
            f"{name}: no resolvable difference from {against}"
            f" ({milliseconds(mine.step_s)} against {milliseconds(base.step_s)} ms)."
        )
    if mine.step_s.median > base.step_s.median:
        return _loss(name, against, rival, dense)
    sentence = f"{name}: {_factor(base, mine)} {against}"
    half = next((cell for cell in cells if cell.summary and cell is not rival and _is_fp16(cell)), None)
    if half and not _is_fp16(rival):
        sentence += _beside(_summary(half), mine, "fp16")
    if overlapped and overlapped is not dense:
        sentence += _beside(_summary(overlapped), mine, "dense overlapped with its backward")
    return sentence + "."


def _beside(other: Summary, mine: Summary, name: str) -> str:
    """The next clause, against one more rival."""
    if not stats.resolved(other.step_s, mine.step_s):
        return f", no resolvable difference from {name}"
    return f", {'but only ' if other.step_s.median < mine.step_s.median else ''}{_factor(other, mine)} {name}"


def _factor(other: Summary, mine: Summary) -> str:
    step = mine.step_s.median
    return times(other.step_s.median / step if step > 0 else 0.0, other.step_s, mine.step_s)


def _is_fp16(cell: Cell) -> bool:
    return cell.method == "fp16" or (cell.method == "dense" and cell.params.get("values") == "fp16")


def _loss(name: str, against: str, rival: Cell, dense: Cell) -> str:
    """Why it is slower: the codec against what it takes off the wire. Bytes saved are not yet time saved."""
    mine, base = _summary(rival), _summary(dense)
    codec = mine.compress_s + mine.decompress_s - base.compress_s - base.decompress_s
    saved = base.communicate_s + base.wait_s - mine.communicate_s - mine.wait_s
    start = f"{name} is {_factor(base, mine)} {against}:"
    work = f"compress + decompress take {_short(codec)}" if codec > 0 else "its codec costs nothing"
    fewer = mine.wire_reduction is not None and mine.wire_reduction > 1
    bytes_ = f"{times(mine.wire_reduction or 0.0)} fewer bytes"
    if saved <= 0 and fewer:
        return f"{start} it sends {bytes_}, yet communicates {_short(-saved)} longer{_why_no_time(rival)}; {work}."
    if saved <= 0:
        return f"{start} it saves neither bytes nor time on the wire ({_short(-saved)} more), and {work}."
    gain = f"{bytes_} save {_short(saved)} on the wire" if fewer else f"it saves {_short(saved)} on the wire"
    if codec > saved:
        return f"{start} {gain}, but {work}."
    return f"{start} {gain} and {work}, but the rest of its step takes longer."


def _why_no_time(cell: Cell) -> str:
    """What its communication waits for, where that is not its bytes: computed from the link's rate and delay."""
    summary, link = _summary(cell), cell.link
    rate = link.configured_bps or cell.bandwidth_bps
    if not rate or link.varies:
        return ""
    on_wire = summary.tx_bytes_per_step * 8 / rate
    rest = summary.communicate_s + summary.wait_s - on_wire
    if rest <= on_wire:
        return ""
    what = f": at this rate its bytes take {_short(on_wire)}; the other {_short(rest)} are"
    if link.delay_s and rest > link.delay_s:
        delay = format_duration(link.delay_s)
        return f"{what} rounds x delay, about {rest / link.delay_s:.0f} rounds of messages x {delay}"
    return (
        f"{what} not the link's: they are this host's, for starting messages and waiting for the other ranks"
    )


def _short(seconds: float) -> str:
    """Two digits: a difference of phases is worth no more."""
    value = seconds * 1e3
    if value <= 0:
        return "0 ms"
    return f"{rounded(value, 10.0 ** (math.floor(math.log10(value)) - 1))} ms"


def _cost(rival: Cell, cells: Sequence[Cell]) -> list[str]:
    """What the fastest method moves and keeps, and what a step time cannot tell."""
    summary = _summary(rival)
    facts = []
    if summary.wire_reduction:
        fewer = summary.wire_reduction >= 1
        factor = summary.wire_reduction if fewer else 1 / summary.wire_reduction
        charged = " charged" if rival.link.mechanism == "bucket" else ""
        facts.append(f"{times(factor)} {'fewer' if fewer else 'more'} bytes{charged} than dense")
    if summary.residual_bytes:
        facts.append(f"+{format_bytes(summary.residual_bytes)}/rank residual")
    start = f"{label(rival, cells)}: {', '.join(facts)}. " if facts else ""
    return [f"{start}Says nothing on accuracy."]


def _missing(result: Result, measured: Sequence[Cell]) -> list[str]:
    """Cells and runs that were asked for and are not there, and why."""
    lines = []
    asked = result.scenario.get("repeats")
    for cell in result.cells:
        why = clean(next((line for line in (cell.error or "").splitlines() if line.strip()), "")).rstrip(".")
        name = clean(cell.id)
        if cell.summary is None:
            lines.append(f"Missing: {name}: {why or 'not run'}.")
        elif isinstance(asked, int) and len(cell.repeats) < asked:
            reason = f": {why}" if why else ""
            lines.append(f"Partial: {name} has {len(cell.repeats)} of {asked} runs{reason}.")
        elif why:
            lines.append(f"{name} failed: {why}.")
    if result.status != "complete" and not lines:
        count = "1 cell was" if len(measured) == 1 else f"{len(measured)} cells were"
        lines.append(f"The result is {result.status}: {count} measured.")
    return lines
