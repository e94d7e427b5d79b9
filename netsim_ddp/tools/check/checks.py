"""Every check of ``netsim check``, run from outside on real ranks over a real link. Imports no torch."""

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
from netsim_ddp.methods import BASELINE
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.ranks.jobs import jobs_for
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.scenario import Scenario, Settings
from netsim_ddp.tools.check import CheckFailed, require

TASK = "netsim_ddp.tools.check.task:CheckTask"
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
class _Answers:
    """What the ranks answered, in their order, and the link's counters each time they were read."""

    found: str
    passed: bool | None
    data: list[Any]
    counters: list[list[Counters]]
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
    with choose(LinkSpec(WORKERS, RATE_BPS), link, note) as made, CheckRanks(made, timeout_s) as ranks:
        for name in CHECKS:
            if name not in leave_out:
                yield ranks.check(name, method)


class CheckRanks:
    """The ranks that checks are run on: fresh processes for each, all inside ``link``."""

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link, self._timeout_s = link, timeout_s
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

    def __enter__(self) -> CheckRanks:
        self._launcher(HASH_SEEDS[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _launcher(self, hash_seed: str) -> Launcher:
        """The processes that start ranks with these hashes; made when they are first asked for."""
        if hash_seed not in self._launchers:
            settings = Settings(threads=1, timeout_s=self._timeout_s)
            self._launchers[hash_seed] = self._stack.enter_context(
                Launcher(self._link, settings, environment={"PYTHONHASHSEED": hash_seed})
            )
        return self._launchers[hash_seed]

    def check(self, name: str, method: MethodSpec) -> Finding:
        """The finding of the check ``name``; a rank that fails or hangs is one."""
        begin = time.monotonic()
        try:
            passed, found = CHECKS[name](self, method)
        except CheckFailed as failed:
            passed, found = False, str(failed)
        except RankError as error:
            passed, found = False, error.message
        return Finding(name, passed, found, time.monotonic() - begin)

    def run(
        self, function: str, method: MethodSpec, workers: int = WORKERS, hash_seed: str = HASH_SEEDS[0]
    ) -> _Answers:
        """Run ``function``, one of :data:`netsim_ddp.tools.check.task.CHECKS`, in fresh processes.

        Raises:
            CheckFailed: what the first rank found wrong.
        """
        link, counters = self._link, list[list[Counters]]()
        jobs = jobs_for(link, self._scenario, TASK, {"check": function}, method=method)[:workers]
        spec = replace(link.spec, workers=workers)

        def gathered(point: str, _: list[Any]) -> None:
            if point == "counted" and (counted := link.counters()) is not None:
                counters.append(counted)

        jobs = [replace(job, world_size=workers, spec=spec) for job in jobs]
        records = self._launcher(hash_seed).run(jobs, gathered)
        for record in records:
            require(record["passed"] is not False, record["text"])
        aggregate = link.shapes.gso if isinstance(link, TcLink) else None
        return _Answers(
            str(records[0]["text"]),
            records[0]["passed"],
            [record["data"] for record in records],
            counters,
            aggregate,
        )


Check = Callable[[CheckRanks, MethodSpec], tuple[bool | None, str]]
"""Returns whether the method passes (None: it is for the reader to judge), and what was found.

Raises CheckFailed or RankError where it does not.
"""


def _by_ranks(function: str, *sizes: int, at: str = "") -> Check:
    """The check that the ranks judge themselves, with each number of them in turn."""

    def check(ranks: CheckRanks, method: MethodSpec) -> tuple[bool | None, str]:
        last = [ranks.run(function, method, workers) for workers in sizes][-1]
        return last.passed, f"{at}{last.found}" if last.passed else last.found

    return check


def _deterministic(ranks: CheckRanks, method: MethodSpec) -> tuple[bool, str]:
    first, second = (ranks.run("deterministic", method, hash_seed=seed) for seed in HASH_SEEDS)
    require(
        first.data == second.data,
        "with another PYTHONHASHSEED it gives other bits, so that ranks of their own processes part: do not go"
        " through a set, sort it",
    )
    return True, first.found


def _scale(ranks: CheckRanks, method: MethodSpec) -> tuple[bool, str]:
    many, few = (float(ranks.run("scale", method, workers).data[0]) for workers in (WORKERS, 2))
    grows = (WORKERS / 2) ** 0.5
    told = f"of a gradient that all ranks share, the averages hold {few:.2f} at 2 ranks and {many:.2f} at {WORKERS}"
    require(many <= few * grows + 0.02, f"{told}: divide the sum by the number of ranks")
    require(many >= few / grows - 0.02, f"{told}: it is divided by the number of ranks twice")
    return True, f"every rank counts the same, and the number of ranks does not change the scale ({many:.2f})"


def _local(ranks: CheckRanks, method: MethodSpec) -> tuple[bool, str]:
    counters = ranks.run("local", method).counters
    for before, after in zip(counters[::2], counters[1::2], strict=True):
        sent = max(late.tx_bytes - early.tx_bytes for early, late in zip(before, after, strict=True))
        require(
            sent <= IDLE_BYTES, f"a local segment sends {sent:,} bytes: communication belongs into a Wire"
        )
    return True, "local segments call nothing of torch.distributed and put nothing on the link"


def _bytes(ranks: CheckRanks, method: MethodSpec) -> tuple[bool, str]:
    shares = []
    for workers in (2, WORKERS):
        answers = ranks.run("sends", method, workers)
        for rank, data in enumerate(answers.data):
            # By the link's counters where it has any, else as the bucket has charged it.
            sent, declared = float(data["charged"]), float(data["declared"])
            if answers.counters:
                before, after = answers.counters
                sent = float(after[rank].tx_bytes - before[rank].tx_bytes)
            if answers.aggregate_bytes is not None:
                declared += acknowledgement_bytes(declared, answers.aggregate_bytes)
            require(
                abs(sent - declared) <= BYTES_TOLERANCE * declared + IDLE_BYTES,
                f"at {workers} ranks rank {rank} sent {sent:,.0f} bytes, and by the messages() of its wires it is"
                f" {declared:,.0f}",
            )
            shares.append(sent / declared if declared else 1.0)
    return True, (
        f"what the wires declare is what the link counted ({min(shares):.3f} to {max(shares):.3f} of it)"
    )


def _times(ranks: CheckRanks, method: MethodSpec) -> tuple[None, str]:
    local, wire, dense_local, dense_wire = (
        max(float(data[key]) for data in answers.data)
        for answers in (ranks.run("times", method), ranks.run("times", MethodSpec(name=BASELINE.name)))
        for key in ("local_ms", "wire_ms")
    )
    return None, (
        f"local {local:.1f} ms, wire {wire:.1f} ms per step of 1M parameters at"
        f" {WORKERS} ranks and 1 Gbit/s (dense {dense_local:.1f} and {dense_wire:.1f} ms)"
    )


BOTH = (2, WORKERS)
CHECKS: Mapping[str, Check] = {
    "builds": _by_ranks("builds", 1, *BOTH, at=f"at 1, 2 and {WORKERS} ranks, "),
    "identical": _by_ranks("identical", *BOTH, at=f"on all of 2 and {WORKERS} ranks "),
    "sizes": _by_ranks("sizes", *BOTH),
    "deterministic": _deterministic,
    "clean": _by_ranks("clean", 2),
    "conserves": _by_ranks("conserves", WORKERS, 2),
    "rounding": _by_ranks("rounding", WORKERS),
    "scale": _scale,
    "unbiased": _by_ranks("unbiased", WORKERS, 2),
    "buckets": _by_ranks("buckets", *BOTH),
    "state": _by_ranks("state", WORKERS),
    "nonfinite": _by_ranks("nonfinite", *BOTH),
    "local": _local,
    "wire": _by_ranks("wire", WORKERS),
    "bytes": _bytes,
    "residual": _by_ranks("residual", *BOTH),
    "memory": _by_ranks("memory", 2),
    "time": _times,
}
"""Every check by its name, in the order in which ``netsim check`` runs them."""
