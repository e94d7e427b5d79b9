"""The life of a rank in ``netsim check``: one trial of one method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netsim_ddp.bench.joining import choose_device, join
from netsim_ddp.bench.task import Task
from netsim_ddp.bench.trials import answers, keeping, nonfinite, sums, wires
from netsim_ddp.bench.trials.bench import Bench, Fault, Found
from netsim_ddp.communication import shaped
from netsim_ddp.communication.backend import build_method

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


class TrialTask(Task):
    """``params``: the ``trial``'s name, and the method's ``options``. Its record: ``passed``, ``found``, ``data``."""

    def run(self) -> None:
        job, params = self.job, self.job.params
        self.say(f"in the trial {params['trial']!r}")
        group, _ = join(self.channel, job, self.shared, choose_device(self.scenario["device"], job.rank))
        bench = Bench(
            group,
            lambda flat: build_method(job.method, flat, group, **params["options"]),
            self.shared.meeting,
            self._progress,
            self._count,
            self._charged,
            lambda value: self.channel.gather("told", value),
        )
        self.channel.result(self._record(TRIALS[params["trial"]], bench))
        self.channel.gather("done")

    def _record(self, trial: Callable[[Bench], Found], bench: Bench) -> dict[str, Any]:
        try:
            found = trial(bench)
        except Fault as fault:
            return {"passed": False, "found": str(fault), "data": None}
        return {"passed": found.passed, "found": found.text, "data": found.data}

    def _progress(self, step: int, doing: str) -> None:
        self.step = step
        self.say(doing)

    def _count(self) -> None:
        self.channel.gather("counted")

    def _charged(self) -> float:
        return shaped.shaped_group().charged()[0] if self.job.mechanism == "bucket" else 0
