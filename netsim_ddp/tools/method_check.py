"""Tests a method from outside, on real ranks over a real link: every promise of docs/methods.md that can be seen.

What a rank can judge is judged there, in :mod:`netsim_ddp.tools.trials`; here, what needs the link's counters or
several runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from netsim_ddp.communication.framing import acknowledgement_bytes
from netsim_ddp.errors import RankError
from netsim_ddp.link.base import Counters, Link
from netsim_ddp.link.mechanisms import choose
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.methods import MethodSpec
from netsim_ddp.ranks.jobs import jobs_for
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.scenario import Scenario, Settings

TASK = "netsim_ddp.tools.trials.task:TrialTask"
WORKERS = 3
RATE_BPS = 10**9
BYTES_TOLERANCE = 0.05
IDLE_BYTES = 2000
"""What a connection that nobody uses may send: late acknowledgements."""
HASH_SEEDS = ("1", "2")
"""Of Python's hashes, in the ranks and in the second ones: the order of a set differs between them."""
NOT_SEEN = (
    "Not seen from outside: ranks that talk through files or shared memory, work handed to another process or a GPU,"
    " less than half a millisecond of work in a wire that is not torch's, and what first goes wrong with more ranks or"
    " steps."
)
"""What no check can tell, for the reader."""


@dataclass(frozen=True)
class Finding:
    """One check: what it found, and whether that is right (None: it is for the reader to judge)."""

    name: str
    passed: bool | None
    found: str
    seconds: float

    @property
    def word(self) -> str:
        """PASS, FAIL, NOTE, or TIME for the one that is."""
        if self.passed is None:
            return "TIME" if self.name == "time" else "NOTE"
        return "PASS" if self.passed else "FAIL"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "result": self.word.lower(),
            "found": self.found,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class _Tried:
    """A trial's records, in rank order, and the link's counters each time they were read."""

    records: Sequence[dict[str, Any]]
    counted: list[list[Counters] | None]
    aggregate_bytes: int | None

    @property
    def fault(self) -> str | None:
        """What the first rank found wrong."""
        return next((record["found"] for record in self.records if record["passed"] is False), None)

    @property
    def found(self) -> str:
        return str(self.records[0]["found"])

    def data(self) -> list[Any]:
        """What each rank hands over beside its words."""
        return [record["data"] for record in self.records]


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
    with choose(LinkSpec(WORKERS, RATE_BPS), link, note) as made, Trials(made, timeout_s) as trials:
        for name in CHECKS:
            if name not in leave_out:
                yield trials.check(name, method)


class Trials:
    """The ranks that checks are run on: fresh processes for each, all inside ``link``."""

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._scenario = Scenario(
            workers=WORKERS,
            threads=1,
            device="cpu",
            backend="gloo",
            execution="concurrent",
            timeout_s=timeout_s,
        ).resolved()
        self._stack = ExitStack()
        self._launchers: dict[str, Launcher] = {}

    def __enter__(self) -> Trials:
        self._launcher(HASH_SEEDS[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _launcher(self, hash_seed: str) -> Launcher:
        """The processes that start ranks with these hashes; made when they are first asked for."""
        if hash_seed not in self._launchers:
            settings = Settings(threads=1, timeout_s=self._timeout_s)
            launcher = Launcher(self._link, settings, environment={"PYTHONHASHSEED": hash_seed})
            self._launchers[hash_seed] = self._stack.enter_context(launcher)
        return self._launchers[hash_seed]

    def check(self, name: str, method: MethodSpec) -> Finding:
        """The finding of the check ``name``; a rank that fails or hangs is one."""
        begin = time.monotonic()
        try:
            passed, found = CHECKS[name](self, method)
        except RankError as error:
            passed, found = False, error.message
        return Finding(name, passed, found, time.monotonic() - begin)

    def run(
        self, trial: str, method: MethodSpec, workers: int = WORKERS, hash_seed: str = HASH_SEEDS[0]
    ) -> _Tried:
        """``trial`` of :mod:`netsim_ddp.tools.trials`, in fresh processes."""
        link, counted = self._link, list[list[Counters] | None]()
        options = {key: value for key, value in method.params.items() if key != "overlap"}
        params = {"trial": trial, "options": options}
        jobs = jobs_for(link, self._scenario, TASK, params, method=method)[:workers]
        spec = replace(link.spec, workers=workers)

        def gathered(point: str, _: list[Any]) -> None:
            if point == "counted":
                counted.append(link.counters())

        jobs = [replace(job, world_size=workers, spec=spec) for job in jobs]
        records = self._launcher(hash_seed).run(jobs, gathered)
        return _Tried(records, counted, link.shapes.gso if isinstance(link, TcLink) else None)


Verdict = tuple[bool | None, str]


def _told(trial: str, *sizes: int, at: str = "") -> Callable[[Trials, MethodSpec], Verdict]:
    """The check that asks the ranks of ``trial``, with each number of them in turn."""

    def check(trials: Trials, method: MethodSpec) -> Verdict:
        for workers in sizes:
            tried = trials.run(trial, method, workers)
            if tried.fault:
                return False, tried.fault
        passed: bool | None = tried.records[0]["passed"]
        return passed, f"{at}{tried.found}" if passed else tried.found

    return check


def _deterministic(trials: Trials, method: MethodSpec) -> Verdict:
    tried = trials.run("deterministic", method)
    if tried.fault:
        return False, tried.fault
    other = trials.run("deterministic", method, hash_seed=HASH_SEEDS[1])
    if other.fault:
        return False, other.fault
    if tried.data() != other.data():
        return False, (
            "with another PYTHONHASHSEED it gives other bits, so that ranks of their own processes part: do not go"
            " through a set, sort it"
        )
    return True, tried.found


def _scale(trials: Trials, method: MethodSpec) -> Verdict:
    projections = []
    for workers in (WORKERS, 2):
        tried = trials.run("scale", method, workers)
        if tried.fault:
            return False, tried.fault
        projections.append(float(tried.data()[0]))
    many, few = projections
    grows = WORKERS / 2
    told = f"of a gradient that all ranks share, the averages hold {few:.2f} at 2 ranks and {many:.2f} at {WORKERS}"
    if many > few * grows**0.5 + 0.02:
        return False, f"{told}: divide the sum by the number of ranks"
    if many < few / grows**0.5 - 0.02:
        return False, f"{told}: it is divided by the number of ranks twice"
    return True, f"every rank counts the same, and the number of ranks does not change the scale ({many:.2f})"


def _local(trials: Trials, method: MethodSpec) -> Verdict:
    tried = trials.run("local", method)
    if tried.fault:
        return False, tried.fault
    known = [counters for counters in tried.counted if counters is not None]
    for before, after in zip(known[::2], known[1::2], strict=True):
        sent = max(late.tx_bytes - early.tx_bytes for early, late in zip(before, after, strict=True))
        if sent > IDLE_BYTES:
            return False, f"a local segment sends {sent:,} bytes: communication belongs into a Wire"
    return True, "local segments call nothing of torch.distributed and put nothing on the link"


def _bytes(trials: Trials, method: MethodSpec) -> Verdict:
    shares = []
    for workers in (2, WORKERS):
        tried = trials.run("sends", method, workers)
        if tried.fault:
            return False, tried.fault
        for rank, (sent, data) in enumerate(zip(_sent(tried), tried.data(), strict=True)):
            declared = float(data["declared"])
            if tried.aggregate_bytes is not None:
                declared += acknowledgement_bytes(declared, tried.aggregate_bytes)
            if abs(sent - declared) > BYTES_TOLERANCE * declared + IDLE_BYTES:
                return False, (
                    f"at {workers} ranks rank {rank} sent {sent:,.0f} bytes, and by the messages() of its wires it is"
                    f" {declared:,.0f}"
                )
            shares.append(sent / declared if declared else 1.0)
    return (
        True,
        f"what the wires declare is what the link counted ({min(shares):.3f} to {max(shares):.3f} of it)",
    )


def _sent(tried: _Tried) -> list[float]:
    """Bytes that each rank sent: by the link's counters where it has any, else as it was charged."""
    known = [counters for counters in tried.counted if counters is not None]
    if not known:
        return [float(data["charged"]) for data in tried.data()]
    before, after = known
    return [float(after[rank].tx_bytes - before[rank].tx_bytes) for rank in range(len(tried.records))]


def _times(trials: Trials, method: MethodSpec) -> Verdict:
    def slowest(tried: _Tried, key: str) -> float:
        return max(float(data[key]) for data in tried.data())

    mine, dense = trials.run("times", method), trials.run("times", MethodSpec(name="dense"))
    return None, (
        f"local {slowest(mine, 'local_ms'):.1f} ms, wire {slowest(mine, 'wire_ms'):.1f} ms per step of 1M parameters at"
        f" {WORKERS} ranks and 1 Gbit/s (dense {slowest(dense, 'local_ms'):.1f} and {slowest(dense, 'wire_ms'):.1f} ms)"
    )


BOTH = (2, WORKERS)
CHECKS: Mapping[str, Callable[[Trials, MethodSpec], Verdict]] = {
    "builds": _told("builds", 1, *BOTH, at=f"at 1, 2 and {WORKERS} ranks, "),
    "identical": _told("identical", *BOTH, at=f"on all of 2 and {WORKERS} ranks "),
    "sizes": _told("sizes", *BOTH),
    "deterministic": _deterministic,
    "clean": _told("clean", 2),
    "conserves": _told("conserves", WORKERS, 2),
    "rounding": _told("rounding", WORKERS),
    "scale": _scale,
    "unbiased": _told("unbiased", WORKERS, 2),
    "buckets": _told("buckets", *BOTH),
    "state": _told("state", WORKERS),
    "nonfinite": _told("nonfinite", *BOTH),
    "local": _local,
    "wire": _told("wire", WORKERS),
    "bytes": _bytes,
    "residual": _told("residual", *BOTH),
    "memory": _told("memory", 2),
    "time": _times,
}
"""Every check by its name, in the order in which ``netsim check`` runs them."""
