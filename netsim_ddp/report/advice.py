"""Advice in words: what every output of it says, and the table of its methods."""

from __future__ import annotations

from netsim_ddp.methods import BASELINE, entry_of
from netsim_ddp.report.labels import DASH, milliseconds, times, two_digits
from netsim_ddp.report.tables import Column, Table, table_of
from netsim_ddp.results.advice import SAME, Advice, Candidate, Speedup
from netsim_ddp.results.labels import clean
from netsim_ddp.units import counted, format_bytes

RUNNERS_UP = 3


def headline(advice: Advice) -> str:
    """The recommendation in a sentence."""
    best = clean(advice.recommended)
    if advice.verdict == "not the network":
        share = advice.best.communicate_s / advice.best.step_s if advice.best.step_s > 0 else 0.0
        return (
            f"Your network is not the bottleneck: use {best}. It spends {share:.0%} of its step on the wire, and no "
            f"method here is more than {SAME:.0%} faster."
        )
    if advice.verdict == "16 bits":
        return (
            f"Use 16-bit gradients: {best} (on NCCL, bf16 sends the same bytes). No method here is more than "
            f"{SAME:.0%} faster."
        )
    return f"Use {best}: {_how_much(advice)}."


def _how_much(advice: Advice) -> str:
    found = advice.speedup
    text = f"{_value(found)} as fast as {clean(advice.rival)}, which is what you would otherwise run"
    return text if found.claimed else f"about {text}"


def facts(advice: Advice) -> list[tuple[str, str]]:
    """What is expected of the recommended method, and how sure that is."""
    best, rival = advice.best, next(each for each in advice.candidates if each.id == advice.rival)
    shown = [("step", f"{milliseconds(advice.step_s)} ms, {_basis(advice, best)}")]
    if best is not rival:
        shown.append((f"against {clean(rival.id)}", f"{_speedup(advice)}; that takes {_step(rival)} ms"))
    shown.append(("bytes", f"{format_bytes(round(best.bytes_per_step))} per rank and step"))
    if best.residual_bytes:
        shown.append(("memory", f"{format_bytes(best.residual_bytes)} per rank for the residual"))
    shown.append(("accuracy", accuracy(best, long=True)))
    return shown


def _value(found: Speedup) -> str:
    """Of what was predicted two digits: more it does not know."""
    return times(found.value) if found.repeats else f"{two_digits(found.value)}x"


def _speedup(advice: Advice) -> str:
    found = advice.speedup
    if found.low is None or found.high is None:
        return _value(found)
    text = f"{_value(found)} ({times(found.low)} to {times(found.high)}"
    if found.repeats == 0:
        return f"{text}, from how far predictions were off)"
    level = f", {found.level:.0%} interval" if found.level else ""
    return f"{text}{level})" + ("" if found.claimed else ", no claim by this tool's rule")


def _basis(advice: Advice, one: Candidate) -> str:
    if one.counts:
        text = f"measured here in {counted(len(one.measured_s), 'repeat')} (predicted: {one.predicted_s * 1e3:.4g} ms)"
        if advice.repeatability is not None:
            low, high = advice.repeatability
            text += f"; other runs were {low:+.0%} to {high:+.0%} off"
        return text
    why = "; what was measured is host-limited" if one.measured is not None else ""
    if advice.prediction_errors is None:
        return f"predicted{why}"
    low, high = advice.prediction_errors
    return f"predicted{why}; such predictions were {low:+.0%} to {high:+.0%} off"


def _step(one: Candidate) -> str:
    if one.measured is not None and one.counts:
        return f"{milliseconds(one.measured)}"
    return f"{one.predicted_s * 1e3:.4g}"


def accuracy(one: Candidate, *, long: bool = False) -> str:
    """What is known of a method's accuracy."""
    if one.accuracy is None:
        if entry_of(one.method).is_baseline:
            return BASELINE.name if not long else f"that of {BASELINE.name} training, which this is"
        return "not measured" if not long else "not measured for this model"
    found = one.accuracy.difference_points
    interval = "" if found.ci_low is None else f" ({found.ci_low:+.2g} to {found.ci_high:+.2g})"
    words = {
        "within": ", within the budget",
        "beyond": ", beyond the budget",
        "not resolved": ", not resolved",
    }
    budget = words.get(one.budget or "", "")
    text = f"{found.mean:+.2g} pt{interval}"
    if not long:
        return text + budget
    where = "" if one.accuracy.same_model else ", of another model"
    seeds = one.accuracy.seeds
    return f"{text} against dense, {seeds} seed{'s' * (seeds != 1)}{where}{budget}"


def table(advice: Advice, *, dropped: frozenset[str] = frozenset()) -> Table:
    """A row for each method: the recommended one, then the others."""
    rival = next(each for each in advice.candidates if each.id == advice.rival)
    columns: list[Column[Candidate]] = [
        Column("method", "method", lambda one: clean(one.id), "left"),
        Column("step", "step\nms", _step),
        Column("measured", "measured\nms", _measured),
        Column("predicted", "predicted\nms", lambda one: f"{one.predicted_s * 1e3:.4g}"),
        Column("against", f"x {clean(rival.method)}", lambda one: _factor(rival, one)),
        Column("sent", "sent/step", lambda one: format_bytes(round(one.bytes_per_step))),
        Column("accuracy", "accuracy", accuracy, "left"),
    ]
    return table_of([each for each in columns if each.name not in dropped], advice.candidates)


def _measured(one: Candidate) -> str:
    if one.measured is None:
        return DASH
    return milliseconds(one.measured) if one.counts else f"({milliseconds(one.measured)})"


def note(advice: Advice) -> str:
    """What brackets in the table say; empty where there are none."""
    if all(one.counts for one in advice.candidates if one.measured is not None):
        return ""
    return (
        "In brackets: host-limited; this host and not the link set that pace, so the predicted step stands."
    )


def _factor(rival: Candidate, one: Candidate) -> str:
    if one.step_s <= 0:
        return DASH
    return times(rival.step_s / one.step_s)
