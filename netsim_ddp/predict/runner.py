"""``netsim predict``'s experiment: the step of every method of a scenario on a link and among ranks that are not here.

One rank's local work is done on this machine (:mod:`netsim_ddp.predict.rehearsal`), the exchanges pass on a clock of
the links (:mod:`netsim_ddp.predict.clock`). The result has cells as a run's, with ``execution: predicted``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from netsim_ddp import __version__
from netsim_ddp.link.bucket.tcp import TcpSettings
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import entry_of
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.predict import message_cost
from netsim_ddp.predict.clock import PredictedLink
from netsim_ddp.predict.rehearsal import STEPS, Rehearsal, Work
from netsim_ddp.predict.subject import Subject, measure_ready_times, subject_of
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.predicted_record import PredictionError
from netsim_ddp.results.record import (
    Cell,
    LinkRecord,
    RankRecord,
    RepeatRecord,
    Result,
    StepRecord,
    TcpRecord,
)
from netsim_ddp.results.summary import summarise
from netsim_ddp.scenario.predict import PredictScenario
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.experiment import Event, Report, Save
from netsim_ddp.steps.phases import step_records
from netsim_ddp.steps.runner import FULL

PLAYED = 2048
"""Of a step among so many workers a few are played, of fewer workers more: their clock takes time by the worker."""
WARM_STEPS = 10
"""Steps before those that count: after so many a connection's window is what it will be."""


def predict(
    scenario: PredictScenario,
    *,
    command: Sequence[str],
    report: Report,
    save: Save,
    pool: Pool | None = None,
) -> Result:
    """Predict every cell of ``scenario`` and return the result, which ``save`` has seen.

    Args:
        pool: of links and fork servers, of which a prediction needs none.

    Raises:
        UsageError: the model cannot be built, or a method exchanges in a way that is not known.
    """
    del pool
    scenario = scenario.resolved()
    costs, subject = message_cost.measured(), subject_of(scenario)
    result = Result(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        status="complete",
        environment=environment(),
        code=code_of([scenario]),
        scenario=scenario.model_dump(mode="json"),
        command=shlex.join(command),
        model_parameters=subject.numel,
    )
    if scenario.recording is not None and (warning := scenario.recording.warning) is not None:
        report(Event("warning", warning))
    _have_ready_times(scenario, subject, report)
    if subject.ready is not None:
        result.ready = {subject.ready.key: subject.ready}
    result.cells = summarise(_cells(scenario, subject, costs))
    save(result)
    return result


def predicted(scenario: PredictScenario, costs: message_cost.Costs, at_once: int) -> Cell:
    """The one cell of ``scenario``, where a message costs a host ``costs`` and ``at_once`` ranks share one.

    Raises:
        UsageError: as :func:`predict`.
    """
    scenario = scenario.resolved()
    subject = subject_of(scenario)
    _have_ready_times(scenario, subject, lambda _: None)
    (cell,) = summarise(_cells(scenario, subject, costs, at_once))
    return cell


def _cells(
    scenario: PredictScenario, subject: Subject, costs: message_cost.Costs, at_once: int = 1
) -> list[Cell]:
    found = []
    for method in scenario.methods:
        repeats = []
        for number in range(scenario.repeats):
            rehearsal = subject.rehearse(scenario, method, number, at_once)
            repeats.append((rehearsal, _repeat(scenario, method, subject, costs, rehearsal)))
        found.append(_cell(scenario, method, subject, repeats))
    return found


def _have_ready_times(scenario: PredictScenario, subject: Subject, report: Report) -> None:
    """When the gradients of what overlaps are ready: given in a file, or measured once."""
    if scenario.ready_from is not None:
        scenario.ready_from.check(subject.flat.names, scenario.model)
        subject.ready = scenario.ready_from
    elif (
        subject.recording is None
        and subject.ready is None
        and any(method.params.get("overlap") for method in scenario.methods)
    ):
        report(Event("note", "measuring when a backward pass has its gradients ready"))
        ready = measure_ready_times(subject, scenario, str(environment()["cpu"]))
        report(Event("note", f"{FULL}: {ready.described}"))


def _repeat(
    scenario: PredictScenario,
    method: MethodSpec,
    subject: Subject,
    costs: message_cost.Costs,
    rehearsal: Rehearsal,
) -> RepeatRecord:
    computed = subject.computed(scenario, subject.buckets(bool(method.params.get("overlap"))))
    link = PredictedLink(scenario.link_spec(), costs)
    took = max((len(each.took_s) for each in rehearsal.events if isinstance(each, Work)), default=STEPS)
    count = max(min(took, max(STEPS, PLAYED // scenario.workers)), len(computed))

    def play(step: int) -> StepRecord:
        return step_records([link.play(rehearsal, computed[step % len(computed)], step)])[0]

    for step in range(WARM_STEPS if scenario.delay_s else 1):
        play(step)
    steps = [play(step) for step in range(count)]
    rank = RankRecord(
        rank=0,
        tx_bytes=rehearsal.wire_bytes * count,
        rx_bytes=rehearsal.wire_bytes * count,
        payload_bytes=rehearsal.payload_bytes * count,
        peak_memory_bytes=0,
        residual_bytes=rehearsal.residual_bytes,
        steps=steps,
    )
    return RepeatRecord(
        ranks=[rank], message_s={kind: cost.message_s or cost.round_s for kind, cost in costs.items()}
    )


def _cell(
    scenario: PredictScenario,
    method: MethodSpec,
    subject: Subject,
    repeats: Sequence[tuple[Rehearsal, RepeatRecord]],
) -> Cell:
    params, times, spec = dict(method.params), scenario.codec_from, scenario.link_spec()
    overlap, first = bool(params.pop("overlap", False)), repeats[0][0]
    if first.collective is not None and "collective" in entry_of(method.name).options:
        params["collective"] = first.collective
    return Cell(
        id=method.id,
        method=method.name,
        params=params,
        model=scenario.model,
        dataset=scenario.dataset,
        workers=scenario.workers,
        bandwidth_bps=spec.rate_bps,
        execution="predicted",
        overlap=overlap,
        threads=scenario.threads,
        ready=[subject.ready.key] if overlap and subject.ready is not None else [],
        substituted=times.name if times is not None and entry_of(method.name).uses_codec else None,
        link=_link_record(spec),
        prediction_error=_error(scenario, method.name, spec),
        repeats=[record for _, record in repeats],
    )


def _error(scenario: PredictScenario, method: str, spec: LinkSpec) -> PredictionError | None:
    """How far the prediction may be off, where a validation says so."""
    if (errors := scenario.errors) is None:
        return None
    found = errors.of(method)
    return PredictionError(
        source=errors.source,
        cells=found.cells,
        low=found.low,
        high=found.high,
        beyond=errors.beyond(scenario.workers, spec.rate_bps, spec.delay_s),
    )


def _link_record(spec: LinkSpec) -> LinkRecord:
    host = TcpSettings.of_host() if spec.windows else None
    return LinkRecord(
        mechanism="model",
        requested_bps=spec.slowest_bps,
        configured_bps=None,
        measured_bps=None,
        ceiling_bps=spec.ceiling_bps,
        tcp=("linux" if host else "ideal") if spec.delay_s else None,
        tcp_host=TcpRecord(**asdict(host)) if host else None,
        shape=spec.describe(),
        delay_s=spec.delay_s,
    )
