"""Tests a method from outside, on real ranks over a real link: every promise of docs/methods.md that can be seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netsim_ddp.bench.jobs import jobs_for
from netsim_ddp.bench.launcher import Launcher
from netsim_ddp.communication.framing import acknowledgement_bytes
from netsim_ddp.errors import RankError
from netsim_ddp.link.base import Counters, Link
from netsim_ddp.link.choose import choose
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc import TcLink
from netsim_ddp.methods import MethodSpec
from netsim_ddp.scenario import Scenario

WORKERS = 3
RATE_BPS = 10**9
BYTES_TOLERANCE = 0.05
IDLE_BYTES = 2000
"""What a connection that nobody uses may send: late acknowledgements."""

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """One check: what it found, and whether that is right (None: it is for the reader to judge)."""

    name: str
    passed: bool | None
    found: str
    seconds: float


@dataclass(frozen=True)
class _Tried:
    """A trial's records, in rank order, and the link's counters each time they were read."""

    records: Records
    counted: list[list[Counters] | None]
    aggregate_bytes: int | None


def check_method(
    method: MethodSpec, *, link: str, timeout_s: float, leave_out: Sequence[str], note: Callable[[str], None]
) -> Iterator[Finding]:
    """Every check's finding, as it is found.

    Args:
        link: tc, bucket or auto. timeout_s: the longest time without progress; a hang is a finding.
        leave_out: names of checks not to run.

    Raises:
        UsageError: there is no such method, or it cannot be built.
        EnvironmentFault: the link cannot be made here.
    """
    scenario = Scenario(
        workers=WORKERS, threads=1, device="cpu", backend="gloo", execution="concurrent", timeout_s=timeout_s
    ).resolved()
    with (
        choose(LinkSpec(WORKERS, RATE_BPS), link, note) as made,
        Launcher(made, threads=1, timeout_s=timeout_s) as launcher,
    ):
        trials = Trials(launcher, made, scenario)
        for name in CHECKS:
            if name not in leave_out:
                yield trials.check(name, method)


class Trials:
    """The ranks that checks are run on: fresh processes for each, all inside ``link``."""

    def __init__(self, launcher: Launcher, link: Link, scenario: Scenario) -> None:
        self._launcher, self._link, self._scenario = launcher, link, scenario

    def check(self, name: str, method: MethodSpec) -> Finding:
        """The finding of the check ``name``; a rank that fails or hangs is one."""
        begin = time.monotonic()
        try:
            passed, found = CHECKS[name](self, method)
        except RankError as error:
            passed, found = False, error.message
        return Finding(name, passed, found, time.monotonic() - begin)

    def run(self, trial: str, method: MethodSpec, workers: int = WORKERS) -> _Tried:
        """``trial`` of :mod:`netsim_ddp.bench.method_trials`, in fresh processes."""
        link, counted = self._link, list[list[Counters] | None]()
        options = {key: value for key, value in method.params.items() if key != "overlap"}
        params = {"trial": trial, "options": options}
        jobs = jobs_for(link, self._scenario, "trial", params, method=method.name)[:workers]
        spec = replace(link.spec, workers=workers).to_json()

        def gathered(point: str, _: list[Any]) -> None:
            if point == "counted":
                counted.append(link.counters())

        records = self._launcher.run([{**job, "world_size": workers, "link": spec} for job in jobs], gathered)
        return _Tried(records, counted, link.shapes.gso if isinstance(link, TcLink) else None)


Verdict = tuple[bool | None, str]


def _builds(trials: Trials, method: MethodSpec) -> Verdict:
    for workers in (1, 2, WORKERS):
        record = trials.run("builds", method, workers).records[0]
        if record["strange"]:
            return False, f"{record['strange'][0]!r} is neither a Local (compress, decompress) nor a Wire"
    if not record["wires"]:
        return False, "it has no Wire: nothing is exchanged"
    return True, f"at 1, 2 and {WORKERS} ranks, {record['wires']} exchanges per step"


def _same_everywhere(trial: str) -> Callable[[Trials, MethodSpec], Verdict]:
    def check(trials: Trials, method: MethodSpec) -> Verdict:
        for workers in (2, WORKERS):
            digests = [record["digests"] for record in trials.run(trial, method, workers).records]
            for step, row in enumerate(zip(*digests, strict=True)):
                if len(set(row)) > 1:
                    odd = next(rank for rank, each in enumerate(row) if each != row[0])
                    return False, f"at {workers} ranks, step {step}: rank {odd}'s average is not rank 0's"
        return True, f"the same bits on all of 2 and {WORKERS} ranks"

    return check


def _deterministic(trials: Trials, method: MethodSpec) -> Verdict:
    for record in trials.run("deterministic", method).records:
        if record["moved"]:
            return False, f"it changes the global random numbers of {' and '.join(record['moved'])}"
        if not record["same"]:
            return False, "a second instance gives other bits for the same gradients"
    return True, "a second instance gives the same bits; global random numbers untouched"


def _conserves(trials: Trials, method: MethodSpec) -> Verdict:
    for workers in (2, WORKERS):
        record = trials.run("conserves", method, workers).records[0]
        missing, steps = record["missing"], record["steps"]
        if not missing < 0.01:
            return False, (
                f"at {workers} ranks {missing:.1%} of the gradient has not come {steps} steps after the last one"
            )
    return True, f"all of the gradient has come {steps} steps after the last one (within 1%)"


def _state(trials: Trials, method: MethodSpec) -> Verdict:
    for record in trials.run("state", method).records:
        if not record["same"]:
            return False, record["problem"] or "continued from its state_dict it gives other bits"
    return True, "continued from its state_dict it gives the same bits"


def _nan(trials: Trials, method: MethodSpec) -> Verdict:
    rows = [record["outcomes"] for record in trials.run("nan", method).records]
    told = [row[1] for row in rows]
    if "finite" in told:
        return False, f"a NaN of rank {WORKERS - 1} is not seen by rank {told.index('finite')}"
    if len(set(told)) > 1:
        return False, "; ".join(f"rank {rank}: {each}" for rank, each in enumerate(told))
    for step in (2, 3):
        for rank, row in enumerate(rows):
            if row[step] != "finite":
                return False, f"{step - 1} steps after a NaN, rank {rank}: {row[step]}"
    return True, f"every rank: {told[0]}, and finite again at the next step"


def _local(trials: Trials, method: MethodSpec) -> Verdict:
    worst = max((bytes_ for row in _sent(trials.run("sends", method)) for bytes_ in row[1:]), default=0)
    if worst > IDLE_BYTES:
        return False, f"a local segment sends {worst:,.0f} bytes"
    return True, "local segments put nothing on the link"


def _bytes(trials: Trials, method: MethodSpec) -> Verdict:
    tried = trials.run("sends", method)
    texts = []
    for rank, (row, record) in enumerate(zip(_sent(tried), tried.records, strict=True)):
        declared = float(record["declared"])
        if tried.aggregate_bytes is not None:
            declared += acknowledgement_bytes(declared, tried.aggregate_bytes)
        if abs(row[0] - declared) > BYTES_TOLERANCE * declared + IDLE_BYTES:
            return False, f"rank {rank} sent {row[0]:,.0f} bytes and its wires declare {declared:,.0f}"
        texts.append(row[0] / declared if declared else 1.0)
    return (
        True,
        f"what the wires declare is what the link counted ({min(texts):.3f} to {max(texts):.3f} of it)",
    )


def _sent(tried: _Tried) -> list[list[float]]:
    """Bytes that each rank sent in each stretch: by the link's counters where it has any, else as it was charged."""
    known = [counters for counters in tried.counted if counters is not None]
    if not known:
        return [list(record["charged"]) for record in tried.records]
    stretches = list(zip(known[::2], known[1::2], strict=True))
    return [
        [float(after[rank].tx_bytes - before[rank].tx_bytes) for before, after in stretches]
        for rank in range(len(tried.records))
    ]


def _times(trials: Trials, method: MethodSpec) -> Verdict:
    def slowest(tried: _Tried, key: str) -> float:
        return max(float(record[key]) for record in tried.records)

    mine, dense = trials.run("times", method), trials.run("times", MethodSpec(name="dense"))
    return None, (
        f"local {slowest(mine, 'local_ms'):.1f} ms, wire {slowest(mine, 'wire_ms'):.1f} ms per step of 1M parameters at"
        f" {WORKERS} ranks and 1 Gbit/s (dense {slowest(dense, 'local_ms'):.1f} and {slowest(dense, 'wire_ms'):.1f} ms)"
    )


CHECKS: dict[str, Callable[[Trials, MethodSpec], Verdict]] = {
    "builds": _builds,
    "identical": _same_everywhere("identical"),
    "deterministic": _deterministic,
    "conserves": _conserves,
    "buckets": _same_everywhere("buckets"),
    "state": _state,
    "nan": _nan,
    "local": _local,
    "bytes": _bytes,
    "time": _times,
}
