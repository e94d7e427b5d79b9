"""Does it pay, against what, and what is missing: the sentences below every table.

Pure functions of a ``Result``. Against its named rival a method is called faster or slower only by the one rule of
:mod:`netsim_ddp.results.verdicts`; factors against other cells stand beside that, in brackets, and claim nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from netsim_ddp.report.choices import choices
from netsim_ddp.report.labels import milliseconds, rounded, times
from netsim_ddp.report.limits import bounded, credit_sentences, limit_sentences
from netsim_ddp.results import stats
from netsim_ddp.results.claims import Claim, claims, named_rival
from netsim_ddp.results.identity import groups
from netsim_ddp.results.labels import clean, group_label, label
from netsim_ddp.results.limits import bound
from netsim_ddp.results.record import Cell, Result, Summary
from netsim_ddp.results.summary import ALONE, held_against, is_dense, is_dense16
from netsim_ddp.results.verdicts import FLOOR, of_family
from netsim_ddp.units import format_bytes, format_duration

# Below this share of the dense step on the wire, the network is not what the user waits for.
BOTTLENECK_SHARE = 0.15
_NOT_SHAPED = {
    "host": "The network is your hosts' own, and was not shaped.",
    "none": "The link is not shaped: these figures are this host's, not your network's.",
}
BEYOND_DOUBT = {">=": "faster", "<=": "slower"}
"""What a bound can still show: a limited method that is faster all the same, and one slower than a limited rival."""


def verdict(result: Result) -> list[str]:
    """Does it pay, against what, and what is missing: whole sentences, each line on its own.

    Cells need their ``summary`` (``netsim_ddp.results.summary.summarise``).
    """
    parts, found = groups(result.cells), claims(result.cells)
    lines: list[str] = []
    for cells in parts:
        prefix = f"{group_label(cells)}: " if len(parts) > 1 else ""
        lines += [prefix + sentence for sentence in _group_verdict(cells, found)]
    lines += _rule(found) + choices(result)
    measured = [cell for cell in result.cells if cell.summary]
    if measured and max(len(cell.repeats) for cell in measured) == 1:
        lines.append(f"One run each: no error bars. --repeats {stats.REPEATS_FOR_95} gives a 95% interval.")
    return lines + _missing(result, measured)


def _rule(found: Mapping[int, Claim]) -> list[str]:
    """By what rule the sentences above claim: ``Rule: 7 comparisons, Holm at 5%, each with fp16,overlap ...``"""
    if all(bound(claim.cell, claim.rival) == "none" for claim in found.values()):
        return []
    needed = next(iter(found.values())).judgement.needed
    rivals = dict.fromkeys(label(claim.rival, [claim.rival]) for claim in found.values())
    return [
        f"Rule: {of_family(len(found))}, each with {' or '.join(rivals)}; a claim needs {needed} repeats and a "
        f"difference beyond {FLOOR:.0%}. Factors in brackets are measured and claim nothing."
    ]


def _group_verdict(cells: Sequence[Cell], found: Mapping[int, Claim]) -> list[str]:
    measured = [cell for cell in cells if cell.summary]
    if not measured:
        return []
    first = measured[0]
    if first.workers == 1:
        return [ALONE]
    rivals = sorted(
        (cell for cell in measured if not is_dense(cell) and named_rival(cell, measured) is not cell),
        key=lambda cell: _summary(cell).step_s.median,
    )
    plain, overlapped = held_against(first, measured, "plain"), held_against(first, measured, "overlapped")
    dense = plain or overlapped
    if dense is None:
        return ["No speedup is given: no dense baseline ran here."]
    lines = limit_sentences(measured) + credit_sentences(measured)
    if not any(cell and cell.link.host_limited for cell in (plain, overlapped)):
        lines += _bottleneck(dense, overlapped, alone=not rivals)
    lines += [_against(found[id(rival)], cells) for rival in rivals if id(rival) in found]
    if rivals:
        lines += _cost(rivals[0], cells)
    return lines


def _summary(cell: Cell) -> Summary:
    if cell.summary is None:
        raise ValueError(f"cell {cell.id} has no summary")
    return cell.summary


def _bottleneck(dense: Cell, overlapped: Cell | None, *, alone: bool) -> list[str]:
    """What the network costs dense, said where it is little, or where it is the whole answer."""
    if dense.link.mechanism in _NOT_SHAPED:
        return [_NOT_SHAPED[dense.link.mechanism]]
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
    return [f"{name} spends {share:.0%} of its step on the wire."] if alone else []


def _wire_share(cell: Cell) -> float:
    """Fraction of the step in exposed communication, below 1 so that the bound it gives is finite."""
    summary = _summary(cell)
    step = summary.step_s.median
    return min(max(summary.communicate_s / step, 0.0), 0.999) if step > 0 else 0.0


def _against(claim: Claim, cells: Sequence[Cell]) -> str:
    """One method against its named rival, the factors against other baselines in brackets."""
    cell, rival, found = claim.cell, claim.rival, claim.judgement
    name, against = label(cell, cells), label(rival, cells)
    mine, base = _summary(cell), _summary(rival)
    factor, limit = _factor(rival, cell), bound(cell, rival)
    if limit == "none":
        return f"{name}: no speedup over {against}: both are host-limited."
    if limit and found.enough and found.verdict != BEYOND_DOUBT[limit]:
        which = name if limit == ">=" else against
        text = f"{name}: {factor} {against}, a bound since {which} is host-limited, and no claim"
    elif found.claimed:
        text = f"{name} is {found.verdict} than {against}: {factor}"
    elif not found.enough:
        count = min(len(cell.repeats), len(rival.repeats))
        these = "this one repeat" if count == 1 else f"these {count} repeats"
        text = f"{name}: {factor} {against} in {these}; a claim needs {found.needed} repeats"
    elif found.verdict == "no change":
        text = (
            f"{name}: within {FLOOR:.0%} of {against} "
            f"(95% interval {1 / found.change.high:.3f}x to {1 / found.change.low:.3f}x)"
        )
    else:
        text = (
            f"{name}: no resolvable difference from {against} "
            f"({factor}, {milliseconds(mine.step_s)} against {milliseconds(base.step_s)} ms)"
        )
    if beside := _beside(cell, rival, cells):
        text += f" [{', '.join(beside)}]"
    slower = mine.step_s.median > (1 + FLOOR) * base.step_s.median
    if slower and not limit and (found.claimed or not found.enough):
        text += f". {_why_slower(cell, rival)}"
    return text + "."


def _beside(cell: Cell, rival: Cell, cells: Sequence[Cell]) -> list[str]:
    """Factors against the baselines that are not the named rival: ``14.8x dense``."""
    half = next((each for each in cells if each.summary and is_dense16(each)), None)
    plain, overlapped = held_against(cell, cells, "plain"), held_against(cell, cells, "overlapped")
    return [
        f"{_factor(each, cell)} {label(each, cells)}"
        for each in (half, plain, overlapped)
        if each and each is not rival and each is not cell and bound(cell, each) != "none"
    ]


def _factor(rival: Cell, cell: Cell) -> str:
    """``14.8x``, or what bounds it."""
    other, mine = _summary(rival).step_s, _summary(cell).step_s
    ratio = other.median / mine.median if mine.median > 0 else 0.0
    return bounded(times(ratio, other, mine), bound(cell, rival))


def _why_slower(cell: Cell, rival: Cell) -> str:
    """The codec against what it takes off the wire. Bytes saved are not yet time saved."""
    mine, base = _summary(cell), _summary(rival)
    codec = mine.compress_s + mine.decompress_s - base.compress_s - base.decompress_s
    saved = base.communicate_s + base.wait_s - mine.communicate_s - mine.wait_s
    reduction = base.tx_bytes_per_step / mine.tx_bytes_per_step if mine.tx_bytes_per_step else 0.0
    work = f"compress + decompress take {_short(codec)}" if codec > 0 else "its codec costs nothing"
    fewer = reduction > 1
    bytes_ = f"{times(reduction)} fewer bytes"
    if saved <= 0 and fewer:
        return f"It sends {bytes_}, yet communicates {_short(-saved)} longer{_why_no_time(cell)}; {work}"
    if saved <= 0:
        return f"It saves neither bytes nor time on the wire ({_short(-saved)} more), and {work}"
    gain = f"{bytes_} save {_short(saved)} on the wire" if fewer else f"It saves {_short(saved)} on the wire"
    return (
        f"{gain}, but {work}"
        if codec > saved
        else f"{gain} and {work}, but the rest of its step takes longer"
    )


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
        return (
            f"{what} rounds x delay, about {rest / link.delay_s:.0f} rounds of messages"
            f" x {format_duration(link.delay_s)}"
        )
    return (
        f"{what} not the link's: they are this host's, for starting messages and waiting for the other ranks"
    )


def _short(seconds: float) -> str:
    """Two digits: a difference of phases is worth no more."""
    value = seconds * 1e3
    return f"{rounded(value, 10.0 ** (math.floor(math.log10(value)) - 1))} ms" if value > 0 else "0 ms"


def _cost(rival: Cell, cells: Sequence[Cell]) -> list[str]:
    """What the fastest method moves and keeps, and what a step time cannot tell."""
    summary = _summary(rival)
    facts = []
    if factor := summary.wire_reduction:
        charged = " charged" if rival.link.mechanism == "bucket" else ""
        facts.append(
            f"{times(max(factor, 1 / factor))} {'fewer' if factor >= 1 else 'more'} bytes{charged} than dense"
        )
    if summary.residual_bytes:
        facts.append(f"+{format_bytes(summary.residual_bytes)}/rank residual")
    start = f"{label(rival, cells)}: {', '.join(facts)}. " if facts else ""
    return [f"{start}Says nothing on accuracy."]


def reason(cell: Cell) -> str:
    """Returns the first line of the error that ended ``cell``; empty where there was none."""
    return clean(next((line for line in (cell.error or "").splitlines() if line.strip()), "")).rstrip(".")


def _missing(result: Result, measured: Sequence[Cell]) -> list[str]:
    """Cells and runs that were asked for and are not there, and why."""
    lines = []
    asked = result.scenario.get("repeats")
    for cell in result.cells:
        why, name = reason(cell), clean(cell.id)
        if cell.summary is None:
            lines.append(f"Missing: {name}: {why or 'not run'}.")
        elif isinstance(asked, int) and len(cell.repeats) < asked:
            lines.append(
                f"Partial: {name} has {len(cell.repeats)} of {asked} runs{f': {why}' if why else ''}."
            )
        elif why:
            lines.append(f"{name} failed: {why}.")
    if result.status != "complete" and not lines:
        lines.append(
            f"The result is {result.status}: {len(measured)} cell{' was' if len(measured) == 1 else 's were'} measured."
        )
    return lines
