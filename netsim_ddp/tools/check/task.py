"""What a rank of ``netsim check`` runs: one check of one method."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from netsim_ddp.communication.building import build_method
from netsim_ddp.communication.shaped import group as shaped
from netsim_ddp.ranks.process_group import choose_device, join
from netsim_ddp.ranks.rank import Task
from netsim_ddp.tools.check import CheckFailed, averages, conservation, nonfinite, segments, state
from netsim_ddp.tools.check.context import Context, Passed
from netsim_ddp.tools.check.interception import PROGRESS_THREAD

REPORT_S = 0.1
CHECKS: dict[str, Callable[[Context], Passed]] = {
    each.__name__: each
    for each in (
        averages.builds,
        averages.identical,
        averages.sizes,
        averages.deterministic,
        averages.clean,
        averages.buckets,
        conservation.conserves,
        conservation.rounding,
        conservation.scale,
        conservation.unbiased,
        nonfinite.nonfinite,
        state.state,
        state.residual,
        state.memory,
        segments.local,
        segments.wire,
        segments.sends,
        segments.times,
    )
}


class CheckTask(Task):
    """``params``: the ``check``'s name. Its record: ``passed``, ``text``, ``data``.

    A thread tells the command how far this rank is, a few times a second: a check's steps take less than a message.
    """

    def run(self) -> None:
        job, check = self.job, self.job.params["check"]
        self.say(f"running the check {check!r}")
        group, _ = join(self.channel, job, self.shared, choose_device(job.settings.device, job.rank))
        self._lock, self._told = threading.Lock(), (self.step, self.doing)
        threading.Thread(target=self._report, daemon=True, name=PROGRESS_THREAD).start()
        gc.freeze()  # a collection then looks at what the method makes, not at all that torch has imported
        options = {key: value for key, value in job.method.params.items() if key != "overlap"}
        context = Context(
            group,
            lambda flat: build_method(job.method.name, flat, group, **options),
            self.shared.barrier,
            self._progress,
            lambda: self._gather("counted", None),
            lambda: shaped.shaped_group().charged()[0] if job.mechanism == "bucket" else 0,
            lambda value: self._gather("told", value),
        )
        try:
            passed = CHECKS[check](context)
        except CheckFailed as failed:
            passed = Passed(str(failed), False)
        with self._silent():
            self.channel.result(asdict(passed))
            self.channel.gather("done")

    def _progress(self, step: int, doing: str) -> None:
        self.step, self.doing = step, doing

    def _gather(self, point: str, value: Any) -> list[Any]:
        with self._silent():
            return self.channel.gather(point, value)

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """What this rank does is told first, and nothing else is sent meanwhile."""
        with self._lock:
            if (latest := (self.step, self.doing)) != self._told:
                self.channel.progress(*latest)
                self._told = latest
            yield

    def _report(self) -> None:
        while True:
            time.sleep(REPORT_S)
            with self._silent():
                pass
