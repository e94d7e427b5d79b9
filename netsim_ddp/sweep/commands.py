"""The two commands that a sweep can repeat. What only one of them needs is imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import summarise
from netsim_ddp.scenario import Scenario, Settings
from netsim_ddp.steps import runner
from netsim_ddp.steps.runner import Event, Report, Save


class Execute(Protocol):
    """Carries out resolved ``settings`` on ``pool``; see :func:`netsim_ddp.steps.runner.run`."""

    def __call__(
        self, settings: Any, /, *, command: Sequence[str], report: Report, save: Save, pool: Pool
    ) -> Result: ...


@dataclass(frozen=True)
class Command:
    """What ``command:`` of a matrix names: its settings, what carries them out, what computes the summaries."""

    kind: type[Settings]
    execute: Execute
    summarise: Callable[[Sequence[Cell]], list[Cell]]


def command_of(name: str) -> Command:
    if name == "train":
        from netsim_ddp.results.training import summarise_training
        from netsim_ddp.scenario.train import TrainScenario

        return Command(TrainScenario, _train, summarise_training)
    return Command(Scenario, runner.run, summarise)


def _train(settings: Any, *, command: Sequence[str], report: Report, save: Save, pool: Pool) -> Result:
    from netsim_ddp.training.runner import train

    def note(text: str) -> None:
        report(Event("note", text))

    def warn(text: str) -> None:
        report(Event("warning", text))

    runner.have_data(settings, note)
    on = pool.start(settings, note, warn)
    result: Result = train(settings, command=command, report=report, save=save, on=on)
    return result
