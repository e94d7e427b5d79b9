"""Which method to use: predicts every candidate's step, measures the most promising ones here while there is time."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netsim_ddp import __version__
from netsim_ddp.errors import NetsimError, UsageError
from netsim_ddp.methods import BASELINE, METHODS, SIXTEEN_BIT, entry_of, takes
from netsim_ddp.methods.snippet import snippet
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.predict import runner as predictions
from netsim_ddp.predict import subject
from netsim_ddp.results import repeatability
from netsim_ddp.results.advice import (
    AccuracyOf,
    Advice,
    Candidate,
    Speedup,
    expected,
    prediction_errors,
    ranked,
    within,
)
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.identity import asked_params
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.stats import ratio_interval
from netsim_ddp.results.summary import repeat_medians, summarise
from netsim_ddp.results.training import summarise_training
from netsim_ddp.results.verdicts import FEWEST, Times, judge
from netsim_ddp.scenario import Scenario
from netsim_ddp.scenario.files import build, build_scenario
from netsim_ddp.scenario.predict import PredictScenario
from netsim_ddp.steps import runner
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.experiment import Event, Report
from netsim_ddp.units import format_duration

RIVAL = MethodSpec(name=SIXTEEN_BIT["gloo"], params={"overlap": True})
PLAIN = MethodSpec(name=BASELINE.name, params={"overlap": True})
MEASURED = 4
"""So many of the fastest candidates are measured, beside the rival."""
PROMISING = 1.25
"""A candidate predicted to take this much longer than the fastest is not measured; predictions err by less."""
REPEATS, STEPS, WARMUP = 7, 5, 2
SHORTEST_S = 5.0
"""With less time left nothing can be measured."""
MADE, MADE_AS = ("auto", "tc", "bucket"), "--link tc, bucket or auto"
TRAINED_WORKERS = 4
"""At most so many in the ``netsim train`` line: accuracy is measured where it can be trained."""


def considered(named: Sequence[MethodSpec]) -> list[MethodSpec]:
    """The candidates: what the user has ``named``, or what the registry holds; each with and without overlap where it
    does not say. Dense and dense in 16 bits, overlapped as DDP does it, always stand beside them."""
    wanted = [
        MethodSpec(name=entry.name, params=dict(params))
        for entry in METHODS.values()
        for params in entry.advised
    ]
    found = {each.id: each for each in (PLAIN, RIVAL)}
    for each in named or wanted:
        entry = entry_of(each.name)
        for overlap in (True,) if entry.is_baseline or entry.rival_on else (True, False):
            spec = MethodSpec(name=each.name, params={"overlap": overlap} | each.params)
            if not takes(each.name, "overlap"):
                spec = each
            found.setdefault(spec.id, spec)
    return list(found.values())


def advise(
    flags: Mapping[str, Any],
    *,
    methods: Sequence[MethodSpec] = (),
    time_s: float,
    budget_points: float | None = None,
    trainings: Mapping[str, Result] | None = None,
    command: Sequence[str],
    report: Report,
    save: Callable[[Result], None],
) -> Advice:
    """Recommend a method.

    Args:
        flags: of ``netsim predict``, without its methods: model or recording, workers, link; and ``link``, which says
            how the link is made where methods are measured.
        methods: the candidates; by default those of the registry.
        time_s: from the call on; no repeat is started after it.
        budget_points: of accuracy, in percentage points, that a method may lose against dense.
        trainings: results of ``netsim train``, by the names of their files.
        save: sees the predictions, then what is measured, after every repeat.

    Raises:
        UsageError: the flags do not make a scenario that can be predicted or measured, or every candidate is beyond the
            budget.
    """
    began = time.monotonic()
    given = {**flags, "baseline": "none"}
    repeats = given.pop("repeats", REPEATS)
    known = {key: given.pop(key) for key in ("errors",) if key in given}
    made = {key: given.pop(key) for key in ("link",) if key in given}
    if build(Scenario, made).link not in MADE:
        raise UsageError(
            f"--link {made['link']} is not the link that is asked about", hint=f"write {MADE_AS}"
        )
    scenario = build(PredictScenario, {**given, **known, "methods": considered(methods)})
    report(Event("note", f"predicting {len(scenario.resolved().methods)} methods"))
    predicted = predictions.predict(scenario, command=command, report=report, save=save)
    subject.forget()
    specs = scenario.resolved().methods
    candidates = [
        _candidate(spec, cell) for spec, cell in zip(specs, summarise(predicted.cells), strict=True)
    ]
    candidates = [_with_accuracy(each, scenario.model, trainings or {}, budget_points) for each in candidates]
    if all(each.budget == "beyond" for each in candidates):
        raise UsageError(
            "every method is beyond the accuracy budget, dense included",
            hint="allow more with --accuracy-budget",
        )
    finalists = _finalists(candidates)
    more = {"ready_from": next(iter(predicted.ready.values()))} if predicted.ready else {}
    measured, why = _measured(
        {
            **given,
            **more,
            **made,
            "repeats": repeats,
            "methods": [spec for spec in specs if spec.id in finalists],
        },
        time_s - (time.monotonic() - began),
        command,
        report,
        save,
    )
    candidates = [_with_measured(each, measured.get(each.id)) for each in candidates]
    return _advice(ranked(candidates), scenario, flags, why, budget_points, command)


def _candidate(spec: MethodSpec, cell: Cell) -> Candidate:
    assert cell.summary is not None
    return Candidate(
        id=spec.id,
        method=spec.name,
        params={key: value for key, value in spec.params.items() if key != "overlap"},
        overlap=bool(spec.params.get("overlap")),
        bytes_per_step=cell.summary.tx_bytes_per_step,
        residual_bytes=cell.summary.residual_bytes,
        communicate_s=cell.summary.communicate_s,
        predicted_s=cell.summary.step_s.median,
    )


def _with_accuracy(
    one: Candidate, model: str, trainings: Mapping[str, Result], points: float | None
) -> Candidate:
    """``one`` with what trainings say of it: of this model rather than of another, and of the most seeds."""
    if entry_of(one.method).is_baseline:
        return one
    found = []
    for source, result in trainings.items():
        for cell in summarise_training(result.cells):
            asked = {key: value for key, value in asked_params(cell).items() if key != "overlap"}
            if cell.method != one.method or asked != one.params or cell.training is None:
                continue
            if (difference := cell.training.difference_points) is None:
                continue
            found.append(
                AccuracyOf(
                    source=source,
                    seeds=len(cell.training.seeds),
                    difference_points=difference,
                    same_model=(cell.model or str(result.scenario.get("model"))) == model,
                )
            )
    best = max(found, key=lambda each: (each.same_model, each.seeds), default=None)
    return one.model_copy(update={"accuracy": best, "budget": within(best, points)})


def _finalists(candidates: Sequence[Candidate]) -> set[str]:
    """What is worth measuring: the rival, the fastest, and those that may turn out to be as fast."""
    allowed = sorted(
        (each for each in candidates if each.budget != "beyond"), key=lambda each: each.predicted_s
    )
    close = [each for each in allowed[:MEASURED] if each.predicted_s <= PROMISING * allowed[0].predicted_s]
    # What compresses least of those that are as good as the fastest is recommended: it is measured too.
    return {RIVAL.id, *(each.id for each in close), ranked(candidates)[0].id}


def _measured(
    values: Mapping[str, Any],
    left_s: float,
    command: Sequence[str],
    report: Report,
    save: Callable[[Result], None],
) -> tuple[dict[str, Cell], str]:
    """The measured cells by their methods' ids, and why there are none, or not all."""
    if left_s < SHORTEST_S:
        return {}, "--time left none to measure in"
    how = {"steps": STEPS, "warmup": WARMUP, "time_budget_s": left_s}
    last: list[Result] = []

    def keep(result: Result) -> None:
        if result.cells:  # none where the link could not be made, or is not what was asked for
            last[:] = [result]
            save(result)

    try:
        scenario = build_scenario({**values, **how})
        report(
            Event(
                "note", f"measuring {len(scenario.resolved().methods)} of them for {format_duration(left_s)}"
            )
        )
        runner.run(scenario, command=command, report=report, save=keep)
        why = ""
    except NetsimError as error:
        why = f"they cannot be measured here: {error.message}"
        report(Event("warning", why))
    if not last:
        return {}, why
    cells = summarise(last[0].cells)
    specs = build_scenario({**values, **how}).resolved().methods
    return {spec.id: cell for spec, cell in zip(specs, cells, strict=True) if cell.summary is not None}, why


def _with_measured(one: Candidate, cell: Cell | None) -> Candidate:
    if cell is None or cell.summary is None:
        return one
    stands = {} if cell.link.host_limited else {"communicate_s": cell.summary.communicate_s}
    return one.model_copy(
        update={
            "measured_s": repeat_medians(cell),
            "measured": cell.summary.step_s,
            "host_limited": cell.link.host_limited,
            "bytes_per_step": cell.summary.tx_bytes_per_step,
            **stands,
        }
    )


def _advice(
    candidates: list[Candidate],
    scenario: PredictScenario,
    flags: Mapping[str, Any],
    why: str,
    budget_points: float | None,
    command: Sequence[str],
) -> Advice:
    best, entry = candidates[0], entry_of(candidates[0].method)
    rival = next(each for each in candidates if each.id == RIVAL.id)
    known = [] if scenario.errors is None else [scenario.errors.of(best.method)]
    off = [(each.low, each.high) for each in known]
    if (here := prediction_errors(candidates)) is not None:
        off.append(here)  # of few cells: what was validated may still happen
    errors = (min(low for low, _ in off), max(high for _, high in off)) if off else None
    found = repeatability.own()
    repeatable = (found.low, found.high)
    return Advice(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        environment=environment(),
        command=shlex.join(command),
        model=scenario.model,
        workers=scenario.workers,
        link=scenario.link_spec().describe(),
        accuracy_budget_points=budget_points,
        recommended=best.id,
        verdict="not the network" if entry.is_baseline else "16 bits" if entry.rival_on else "compress",
        rival=rival.id,
        step_s=expected(best, errors, repeatable),
        speedup=_speedup(best, rival, candidates, errors),
        candidates=candidates,
        prediction_errors=errors,
        repeatability=repeatable if best.counts else None,
        missing=_missing(best, scenario, why),
        snippet=snippet(best.method, best.params, overlap=best.overlap),
        commands=_commands(best, rival, flags, scenario),
    )


def _speedup(
    best: Candidate, rival: Candidate, candidates: Sequence[Candidate], errors: tuple[float, float] | None
) -> Speedup:
    value = rival.step_s / best.step_s if best.step_s > 0 else 1.0
    if best is rival:
        return Speedup(value=1.0, low=1.0, high=1.0)
    if not (best.counts and rival.counts):
        low, high = (None, None) if errors is None else (value * (1 + errors[0]), value * (1 + errors[1]))
        return Speedup(
            value=value,
            low=None if low is None else min(low, value),
            high=None if high is None else max(high, value),
        )
    held = [each for each in candidates if each.counts and each is not rival]
    judged = judge([Times(rival.measured_s, each.measured_s) for each in held])
    change = ratio_interval(best.measured_s, rival.measured_s)
    return Speedup(
        value=change.value,
        low=change.low,
        high=change.high if math.isfinite(change.high) else None,
        level=change.level,
        repeats=change.count,
        claimed=judged[held.index(best)].claimed,
    )


def _missing(best: Candidate, scenario: PredictScenario, why: str) -> list[str]:
    """What stands between the advice and a decision."""
    found = []
    if not entry_of(best.method).is_baseline:
        found += _accuracy_missing(best)
    if best.measured is not None and best.host_limited:
        found.append(
            "What was measured of it says how fast this host is, not the link: the prediction stands. netsim run on "
            "your own machines (docs/hosts.md) measures it."
        )
    elif best.measured is None:
        found.append(
            f"Its step is predicted, not measured: {why}."
            if why
            else "Its step is predicted, not measured: the time was up before; --time 10min gives more."
        )
    elif len(best.measured_s) < FEWEST:
        count = len(best.measured_s)
        found.append(
            f"It was measured in {count} repeat{'s' * (count != 1)}; a claim needs {FEWEST}: a longer --time gives it."
        )
    if scenario.recording is None:
        compute = format_duration(scenario.compute_s or 0.0)
        found.append(
            f"That a worker computes for {compute} is your word: netsim record measures it in your own training."
        )
    elif scenario.recording.gradients in ("none", "synthetic"):
        found.append(
            "The recording holds no gradients of yours: how long a selection takes depends on them. Record with "
            "--gradients sampled."
        )
    if scenario.codec_from is None and not entry_of(best.method).ddp_backends:
        found.append(
            "Compressing was timed on this machine's processor. Where yours is another, or a GPU, time it there with "
            "netsim bench compress --json, and give the file as --codec-from."
        )
    return found


def _accuracy_missing(best: Candidate) -> list[str]:
    known = best.accuracy
    if known is None:
        text = "Its accuracy was not measured for this model: the netsim train line below does that."
        return [
            text
            if best.budget is None
            else f"{text[:-1]}, and whether it stays within the budget is not known."
        ]
    found = []
    if not known.same_model:
        found.append(f"Its accuracy is that of another model, from {known.source}.")
    if best.budget == "not resolved":
        found.append(
            f"{known.seeds} seed{'s' * (known.seeds != 1)} cannot tell whether it stays within the accuracy budget: "
            "train more of them."
        )
    return found


def _commands(
    best: Candidate, rival: Candidate, flags: Mapping[str, Any], scenario: PredictScenario
) -> list[str]:
    """Lines that give what is missing."""
    found = []
    if not entry_of(best.method).is_baseline and (best.accuracy is None or not best.accuracy.same_model):
        own = {
            key: flags[key]
            for key in ("model", "dataset", "data_dir", "text", "loss_function")
            if key in flags
        }
        if scenario.recording is not None:
            own = {"model": "my_module:build", "dataset": "my_module:data"}
        workers = min(scenario.workers, TRAINED_WORKERS)
        optimizer = f" --optimizer {flags['optimizer']}" if "optimizer" in flags else ""
        found.append(
            f"netsim train{_written(own)}{optimizer} --workers {workers} --seeds {FEWEST} --method dense --method "
            f"{shlex.quote(_without_overlap(best))} --json accuracy.json"
        )
    methods = dict.fromkeys((rival.id, best.id))
    here = {
        key: value
        for key, value in flags.items()
        if key not in ("ready_from", "batch_size", "repeats", "errors")
    }
    found.append(
        f"netsim run{_written(here)} --baseline none"
        + "".join(f" --method {shlex.quote(each)}" for each in methods)
        + f" --repeats {REPEATS}"
    )
    return found


def _without_overlap(one: Candidate) -> str:
    return MethodSpec(name=one.method, params=one.params).id


def _written(flags: Mapping[str, Any]) -> str:
    """``flags`` as they are typed."""
    words = []
    for key, value in flags.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            for each in value if isinstance(value, list | tuple) else [value]:
                words += [flag, shlex.quote(str(each))]
    return "".join(f" {word}" for word in words)
