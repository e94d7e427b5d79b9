"""The life of a rank in ``netsim check``: one trial of one method."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from netsim_ddp.communication.backend import build_method
from netsim_ddp.communication.shaped import group as shaped
from netsim_ddp.ranks.channel import RankChannel
from netsim_ddp.ranks.process_group import choose_device, join
from netsim_ddp.ranks.rank import Task
from netsim_ddp.tools.trials import answers, keeping, nonfinite, sums, wires
from netsim_ddp.tools.trials.bench import Bench, Fault, Found
from netsim_ddp.tools.trials.watch import TELLER

TELL_S = 0.1
TRIALS: dict[str, Callable[[Bench], Found]] = {
    each.__name__: each
    for each in (
        answers.builds,
        answers.identical,
        answers.sizes,
        answers.deterministic,
        answers.clean,
        answers.buckets,
        sums.conserves,
        sums.rounding,
        sums.scale,
        sums.unbiased,
        nonfinite.nonfinite,
        keeping.state,
        keeping.residual,
        keeping.memory,
        wires.local,
        wires.wire,
        wires.sends,
        wires.times,
    )
}


class _Teller:
    """Tells the command how far this rank is, a few times a second: a trial's steps take less than a message does."""

    def __init__(self, channel: RankChannel) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self._latest = self._told = (-1, "starting")
        threading.Thread(target=self._serve, daemon=True, name=TELLER).start()

    def note(self, step: int, doing: str) -> None:
        self._latest = step, doing

    @contextmanager
    def silent(self) -> Iterator[None]:
        """What was noted is told first, and nothing else is sent meanwhile."""
        with self._lock:
            self._tell()
            yield

    def _serve(self) -> None:
        while True:
            time.sleep(TELL_S)
            with self._lock:
                self._tell()

    def _tell(self) -> None:
        if (latest := self._latest) != self._told:
            self._channel.progress(*latest)
            self._told = latest


class TrialTask(Task):
    """``params``: the ``trial``'s name, and the method's ``options``. Its record: ``passed``, ``found``, ``data``."""

    def run(self) -> None:
        job, params = self.job, self.job.params
        self.say(f"running the trial {params['trial']!r}")
        group, _ = join(self.channel, job, self.shared, choose_device(job.settings.device, job.rank))
        self._teller = _Teller(self.channel)
        gc.freeze()  # a collection then looks at what the method makes, not at all that torch has imported
        bench = Bench(
            group,
            lambda flat: build_method(job.method.name, flat, group, **params["options"]),
            self.shared.barrier,
            self._progress,
            self._count,
            self._charged,
            lambda value: self._gather("told", value),
        )
        record = self._record(TRIALS[params["trial"]], bench)
        with self._teller.silent():
            self.channel.result(record)
            self.channel.gather("done")

    def _record(self, trial: Callable[[Bench], Found], bench: Bench) -> dict[str, Any]:
        try:
            found = trial(bench)
        except Fault as fault:
            return {"passed": False, "found": str(fault), "data": None}
        return {"passed": found.passed, "found": found.text, "data": found.data}

    def _progress(self, step: int, doing: str) -> None:
        self.step, self.doing = step, doing
        self._teller.note(step, doing)

    def _gather(self, point: str, value: Any = None) -> list[Any]:
        with self._teller.silent():
            return self.channel.gather(point, value)

    def _count(self) -> None:
        self._gather("counted")

    def _charged(self) -> float:
        return shaped.shaped_group().charged()[0] if self.job.mechanism == "bucket" else 0
