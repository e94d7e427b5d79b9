"""One training as the command sees it: its jobs, its curve as it grows, its bytes, its checkpoints. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netsim_ddp.link.base import Counters, Link
from netsim_ddp.link.probe.probe import ProbeReport, check
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.ranks.jobs import Job, jobs_for
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.results.record import RankRecord, RepeatRecord
from netsim_ddp.results.training_record import EpochRecord
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.training.checkpoint import Checkpoints, FileSum, Manifest, settings_of
from netsim_ddp.units import format_bytes, format_duration

TASK = "netsim_ddp.training.task:TrainTask"

Facts = list[dict[str, Any]]


class Training:
    """One method with one seed.

    Args:
        scenario: resolved.
        checkpoints: where its checkpoints go. start: the one that it goes on from.
        traced: how many steps the ranks shall answer the laps of.
        log: whether it may write to the scenario's ``log_dir``.
    """

    def __init__(
        self,
        scenario: TrainScenario,
        link: Link,
        method: MethodSpec,
        seed: int,
        learning_rate: float,
        *,
        checkpoints: Checkpoints | None = None,
        start: tuple[Path, Manifest] | None = None,
        traced: int = 0,
        log: bool = True,
    ) -> None:
        self._scenario = scenario.model_copy(update={"seed": seed, "learning_rate": learning_rate})
        self._link, self._method, self._seed, self._checkpoints, self._start = (
            link,
            method,
            seed,
            checkpoints,
            start,
        )
        self._traced, self._log_dir = traced, scenario.log_dir if log else None
        workers = scenario.workers
        self.history: list[EpochRecord] = []
        """The epochs so far."""
        self.drops = self.retransmits = 0
        self._tx_epoch, self._tx_total = [0] * workers, [0] * workers
        self._rx_total, self._payload = [0] * workers, [0] * workers
        if start is not None:
            self._take_over(start[1])
        self._last: list[Counters] | None = None
        self._charged: list[list[int]] = []
        self._epoch: Facts = []

    def _take_over(self, manifest: Manifest) -> None:
        self.history = list(manifest.history)
        self.drops, self.retransmits = manifest.drops, manifest.retransmits
        workers = self._scenario.workers

        def of_ranks(values: list[int]) -> list[int]:
            """Every rank's value; those of the busiest rank for all where the number of ranks is another."""
            return list(values) if manifest.world_size == workers else [max(values)] * workers

        self._tx_epoch, self._tx_total = of_ranks(manifest.tx_epoch), of_ranks(manifest.tx_total)
        self._rx_total, self._payload = of_ranks(manifest.rx_total), of_ranks(manifest.payload)

    def run(
        self, launcher: Launcher, on_facts: Callable[[Facts], None], on_epoch: Callable[[str], None]
    ) -> tuple[RepeatRecord, Facts]:
        """Train on ``launcher``'s ranks.

        Args:
            on_facts: called before the first step with what every rank says of itself.
            on_epoch: called with a line on every epoch.

        Returns:
            The record, and every rank's own.

        Raises:
            RankError: a rank failed; ``history`` has the epochs before.
        """

        def gathered(point: str, values: list[Any]) -> None:
            if point == "built":
                on_facts(values)
                self._begin(values)
            elif point == "epoch":
                self._count(values)
                self._epoch = values
            elif point == "validated":
                on_epoch(self._end_epoch(values[0]))
            elif point == "checkpoint":
                self._count(values)
                self._commit(values)

        records = launcher.run(self._jobs(), gathered)
        return self._record(records), records

    def _jobs(self) -> list[Job]:
        log, start, method = self._log_dir, self._start, self._method
        params = {
            "checkpoint": None if self._checkpoints is None else str(self._checkpoints.folder.resolve()),
            "resume": None
            if start is None
            else {"folder": str(start[0].resolve()), "world_size": start[1].world_size},
            "log": None if log is None else str(Path(log).resolve() / method.id / f"seed-{self._seed}"),
            "trace": self._traced,
        }
        return jobs_for(self._link, self._scenario, TASK, params, method=method, repeat=self._seed)

    def _begin(self, facts: Facts) -> None:
        probed = [fact["probed_bps"] for fact in facts if fact["probed_bps"] is not None]
        if probed and self._link.mechanism == "bucket":
            check(self._link, ProbeReport(min(probed), min(probed)))
        self._link.begin()
        self._last = self._link.counters()
        self._charged = [fact["charged"] for fact in facts]

    def _count(self, values: Facts) -> None:
        """Add what has been sent since the last reading; no rank sends while this runs."""
        now = self._link.counters()
        for rank, value in enumerate(values):
            if now is not None and self._last is not None:
                sent = now[rank].since(self._last[rank])
            else:
                tx, rx = (new - old for new, old in zip(value["charged"], self._charged[rank], strict=True))
                sent = Counters(tx, rx, drops=0, retransmits=0)
            self.drops += sent.drops
            self.retransmits += sent.retransmits
            self._tx_epoch[rank] += sent.tx_bytes
            self._tx_total[rank] += sent.tx_bytes
            self._rx_total[rank] += sent.rx_bytes
        self._last, self._charged = now, [value["charged"] for value in values]

    def _end_epoch(self, validated: dict[str, Any]) -> str:
        """Add the epoch's record, and return its line."""
        totals = [value["totals"] for value in self._epoch]
        batches = sum(each["batches"] for each in totals)
        counted = sum(each["counted"] for each in totals)
        if self._link.mechanism == "none":  # nothing counts there: the method's formula, headers included
            self._tx_epoch = [each["predicted_bytes"] for each in totals]
            self._tx_total = [a + b for a, b in zip(self._tx_total, self._tx_epoch, strict=True)]
            self._rx_total = list(self._tx_total)
        self._payload = [a + each["payload_bytes"] for a, each in zip(self._payload, totals, strict=True)]
        record = EpochRecord(
            epoch=len(self.history) + 1,
            steps=totals[0]["steps"],
            learning_rate=self._epoch[0]["rate"],
            train_loss=math.fsum(each["loss"] for each in totals) / batches,
            train_accuracy=sum(each["correct"] for each in totals) / counted if counted else None,
            validation_loss=validated["loss"],
            validation_accuracy=validated["accuracy"],
            elapsed_s=(self.history[-1].elapsed_s if self.history else 0.0) + totals[0]["clock_s"],
            tx_bytes=max(self._tx_epoch),
            skipped_steps=totals[0]["skipped"],
            phases_s=totals[0]["phases_s"],
        )
        self.history.append(record)
        self._tx_epoch = [0] * len(self._tx_epoch)
        return epoch_line(record, self._scenario.epochs)

    def _commit(self, values: Facts) -> None:
        assert self._checkpoints is not None
        scenario = self._scenario
        self._checkpoints.commit(
            Manifest(
                method=self._method.id,
                params=dict(self._method.params),
                seed=self._seed,
                learning_rate=scenario.learning_rate,
                world_size=scenario.workers,
                threads=scenario.threads,
                epoch=values[0]["epoch"],
                step=values[0]["step"],
                global_step=values[0]["global_step"],
                settings=settings_of(scenario.model_dump(mode="json")),
                history=self.history,
                tx_epoch=self._tx_epoch,
                tx_total=self._tx_total,
                rx_total=self._rx_total,
                payload=self._payload,
                drops=self.drops,
                retransmits=self.retransmits,
                files={name: FileSum(**each) for value in values for name, each in value["files"].items()},
            )
        )

    def _record(self, records: Facts) -> RepeatRecord:
        return RepeatRecord(
            ranks=[
                RankRecord(
                    rank=rank,
                    tx_bytes=self._tx_total[rank],
                    rx_bytes=self._rx_total[rank],
                    payload_bytes=self._payload[rank],
                    peak_memory_bytes=record["peak_memory_bytes"],
                    residual_bytes=record["residual_bytes"],
                    parameters_sha256=record["sha256"],
                    steps=[],
                )
                for rank, record in enumerate(records)
            ],
            seed=self._seed,
            epochs=self.history,
        )


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """``epoch 3/10 loss 0.213 train 93.5% valid 95.8% 4.2 s 1.2 MB``; the seconds are the training clock's."""
    parts = [f"epoch {record.epoch}/{epochs}", f"loss {record.train_loss:.4f}"]
    accuracies = {"train": record.train_accuracy, "valid": record.validation_accuracy}
    parts += [f"{name} {value:.1%}" for name, value in accuracies.items() if value is not None]
    parts += [format_duration(record.elapsed_s), f"{format_bytes(record.tx_bytes)} sent"]
    if record.skipped_steps:
        parts.append(f"{record.skipped_steps} skipped")
    return " | ".join(parts)
