"""One rank's whole training: epochs of steps, validation between them, checkpoints, and what it tells the command."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from netsim_ddp.communication import cost
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import UsageError
from netsim_ddp.ranks.channel import RankChannel
from netsim_ddp.ranks.jobs import Job, Shared
from netsim_ddp.ranks.process_group import choose_device, lasting_bps
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.steps.execution import Concurrent, step_timer
from netsim_ddp.steps.model_task import ModelTask
from netsim_ddp.steps.phases import StepSample
from netsim_ddp.steps.programs import parameters_of
from netsim_ddp.training import determinism
from netsim_ddp.training.exchange import build_exchange
from netsim_ddp.training.loop import Totals, Trainer
from netsim_ddp.training.other_ranks import carried_momentum, on_other_ranks
from netsim_ddp.training.precision import LossScaler
from netsim_ddp.training.states import (
    SHARED,
    rank_file,
    read_state,
    split_model,
    write_state,
)
from netsim_ddp.training.tracker import MetricsTracker
from netsim_ddp.units import counted
from netsim_ddp.workloads.own_data import Turns
from netsim_ddp.workloads.workload import Workload

SKIPPED_BEFORE_TRACE = 2
STATISTICS_EVERY = 10


class TrainTask(ModelTask):
    """Runs one training. Its ``params``: ``checkpoint`` (the folder for this training's, or None), ``resume`` (a
    checkpoint and the number of ranks that it is of, or None), ``log`` (a folder or None), ``trace`` (the laps of how
    many steps to return)."""

    def __init__(self, channel: RankChannel, job: Job, shared: Shared) -> None:
        super().__init__(channel, job, shared)
        self.scenario = job.settings_as(TrainScenario)
        self._epoch = self._first_step = self._seen = 0
        self._clock_s = 0.0
        """The training clock at the end of the last epoch."""
        self._traced: list[StepSample] = []
        self._tracker: MetricsTracker | None = None

    def run(self) -> None:
        job, scenario = self.job, self.scenario
        device = choose_device(scenario.device, job.rank)
        determinism.seed_everything(scenario.seed, job.rank)
        first = job.rank == 0
        self._workload = self.build(device, batch_size=scenario.batch_size, try_training=first)
        self._steps = self._steps_per_epoch(self._workload)
        self._group, facts = self.join(self._workload, device)
        self._trainer = self._build_trainer(self._workload, self._group)
        if job.params["resume"] is not None:
            self._restore(Path(job.params["resume"]["folder"]), job.params["resume"]["world_size"])
        if first and job.params["log"] is not None:
            self._tracker = MetricsTracker(
                job.params["log"], first_step=self._epoch * self._steps + self._first_step
            )
        self.channel.gather("built", facts | self._facts(device))
        self._execution = Concurrent(step_timer(device), lambda: None)
        self._train()
        if self._tracker is not None:
            self._tracker.close()
        exchange = self._trainer.exchange
        self.finish(
            parameters_of(self._workload.model),
            self._traced,
            residual_bytes=exchange.residual_bytes,
            collective=exchange.collective,
            citation=exchange.method.citation if exchange.method is not None else "",
        )

    def _steps_per_epoch(self, workload: Workload) -> int:
        """Updates; micro-batches that do not fill one at an epoch's end are left out."""
        batches, accumulate = workload.batches_per_epoch, self.scenario.accumulate
        if isinstance(workload.train_loader, Turns):  # which a rank may have split as it pleased
            batches = min(self.channel.gather("batches of an epoch", batches))
        steps: int = batches // accumulate
        if steps == 0:
            raise UsageError(
                f"an epoch has {counted(batches, 'batch', 'batches')} per rank, fewer than one step "
                f"accumulates: {accumulate}",
                hint=f"write --accumulate {batches} at most, or a smaller --batch-size",
            )
        wanted = self.scenario.steps_per_epoch
        return steps if wanted is None else min(steps, wanted)

    def _build_trainer(self, workload: Workload, group: Group) -> Trainer:
        method, scenario = self.job.method, self.scenario
        params = scenario.exchange_params(method)
        flat = FlatGradients(workload.model.named_parameters())
        return Trainer(
            workload,
            flat,
            build_exchange(scenario, method.name, params, method.params.get("freeze_after"), flat, group),
            LossScaler() if scenario.precision == "fp16" else None,
            scenario,
            self.say,
            alone=group.world_size == 1,
            params=params,
        )

    def _facts(self, device: torch.device) -> dict[str, Any]:
        job, workload = self.job, self._workload
        probed = self.probe(self._group, device)
        self.begin(self._group)
        dense = 2 * 4 * workload.parameters_count * 8 / lasting_bps(job)
        ideal = cost.ideal_seconds(self._trainer.exchange.wires, lasting_bps(job)) or dense
        if job.mechanism == "none":
            ideal = 0.0
        self.say("counting the validation set")
        count = sum(targets.numel() for _, targets in workload.validation_loader) if job.rank == 0 else None
        return {
            "ideal_s": ideal + 2 * job.spec.delay_s * 4 * self._group.world_size,
            "probed_bps": probed,
            "validation_samples": count,
            "charged": self.charged()[:2],
        }

    def _train(self) -> None:
        epochs, every = self.scenario.epochs, self.scenario.checkpoint_epochs
        while self._epoch < epochs:
            self._run_epoch()
            totals = dataclasses.asdict(self._trainer.totals)
            self._gather("epoch", {"totals": totals, "rate": self._rate(self._epoch, self._steps - 1)})
            self._validate()
            self._clock_s += self._trainer.totals.clock_s
            self._trainer.totals = Totals()
            self._epoch, self._first_step = self._epoch + 1, 0
            due = every is not None and self._epoch % every == 0
            if due or self._epoch == epochs or self._due(self.step + 1):
                self._save()

    def _run_epoch(self) -> None:
        workload, trainer = self._workload, self._trainer
        workload.start_epoch(self._epoch, self._first_step * self.scenario.accumulate)
        for step in range(self._first_step, self._steps):
            self.step = self._epoch * self._steps + step
            rate = self._rate(self._epoch, step)
            before = trainer.totals.predicted_bytes
            sample = trainer.step(self._execution, rate, f"step {step + 1} of epoch {self._epoch + 1}")
            self._trace(sample)
            self._log_step(sample, rate, trainer.totals.predicted_bytes - before)
            if step + 1 < self._steps and self._due(self.step + 1):
                self._first_step = step + 1
                self._save()

    def _rate(self, epoch: int, step: int) -> float:
        return self.scenario.rate_at(epoch + step / self._steps)

    def _due(self, done: int) -> bool:
        """Whether ``--checkpoint-every`` names this number of steps."""
        every = self.scenario.checkpoint_steps
        return every is not None and done % every == 0

    def _validate(self) -> None:
        """Validate on rank 0 alone: parameters are the same on all ranks, and BatchNorm's statistics its, as in DDP."""
        found: dict[str, Any] = {}
        self.say("validating")
        if self.job.rank == 0:
            with self._heard():
                loss, accuracy = self._workload.validate()
            found = {"loss": loss, "accuracy": accuracy}
            if self._tracker is not None:
                totals = self._trainer.totals
                self._tracker.log(
                    self.step,
                    {
                        "validation/loss": loss,
                        "validation/accuracy": accuracy,
                        "train/accuracy": totals.correct / totals.counted if totals.counted else None,
                        "epoch": self._epoch + 1,
                    },
                )
        self.channel.gather("validated", found)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Forward passes inside count as progress."""
        last = time.monotonic()

        def tell(*_: object) -> None:
            nonlocal last
            if time.monotonic() > last + 1:
                last = time.monotonic()
                self.say("validating")

        hook = self._workload.model.register_forward_hook(tell)
        try:
            yield
        finally:
            hook.remove()

    def _gather(self, point: str, value: dict[str, Any]) -> None:
        """Wait while the command reads the link's counters; no rank sends meanwhile."""
        self.channel.gather(point, {**value, "charged": self.charged()[:2]})

    def _save(self) -> None:
        """Write this rank's part; the command makes a checkpoint of all parts."""
        trainer = self._trainer
        if self.job.params["checkpoint"] is None or trainer.pending is not None:
            return  # what is pending is in the checkpoint that this began with
        self.say("saving a checkpoint")
        rank, done = self.job.rank, self._epoch * self._steps + self._first_step
        folder = Path(self.job.params["checkpoint"]) / f"step-{done:06d}.part"
        parameters, rest = split_model(self._workload.model)
        state: dict[str, Any] = {
            "rank": rank,
            "world_size": self.job.world_size,
            "model": rest,
            "exchange": trainer.exchange.state_dict(),
            "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
            "rng": determinism.capture(self._workload.device),
            "totals": dataclasses.asdict(trainer.totals),
            "clock_s": self._clock_s,
            "epoch": self._epoch,
            "step": self._first_step,
            "steps_per_epoch": self._steps,
        }
        files = write_state(folder, rank_file(rank), state)
        if rank == 0:
            optimizer = trainer.exchange.shared_state()
            files |= write_state(folder, SHARED, {"parameters": parameters, "optimizer": optimizer})
        self._gather(
            "checkpoint",
            {"files": files, "epoch": self._epoch, "step": self._first_step, "global_step": done},
        )

    def _restore(self, folder: Path, world_size: int) -> None:
        """Go on from ``folder``, which ``world_size`` ranks saved."""
        self.say("loading the checkpoint")
        trainer, rank, device = self._trainer, self.job.rank, self._workload.device
        shared = read_state(folder / SHARED)
        if world_size != self.job.world_size:
            states = [read_state(folder / rank_file(each)) for each in range(world_size)]
            rule, ranks = self.scenario.resume_residuals, self.job.world_size
            shared["optimizer"] = carried_momentum(
                shared["optimizer"], states, rule, ranks, trainer.flat.names
            )
            own = on_other_ranks(states, rule, (rank, ranks), self._steps, trainer)
        else:
            own = read_state(folder / rank_file(rank))
            determinism.restore(own["rng"], device)
        try:
            self._workload.model.load_state_dict({**shared["parameters"], **own["model"]})
            trainer.exchange.load_shared_state(shared["optimizer"])
            if own["exchange"]:
                trainer.exchange.load_state_dict(own["exchange"])
        except (ValueError, RuntimeError, KeyError) as error:
            raise UsageError(f"checkpoint {folder} is of something else: {error}") from error
        if trainer.scaler is not None and own["scaler"] is not None:
            trainer.scaler.load_state_dict(own["scaler"])
        trainer.totals = Totals(**own["totals"])
        self._clock_s, self._epoch, self._first_step = own["clock_s"], own["epoch"], own["step"]

    def _trace(self, sample: StepSample) -> None:
        """Keep the first steps after those that warm up."""
        self._seen += 1
        if self._seen > SKIPPED_BEFORE_TRACE and len(self._traced) < self.job.params["trace"]:
            self._traced.append(sample)

    def _log_step(self, sample: StepSample, rate: float, sent: int) -> None:
        if self._tracker is None:
            return
        wanted = self.step % STATISTICS_EVERY == 0
        phases = Totals()
        phases.add(sample)
        self._tracker.log_step(
            self.step,
            loss=sample.loss,
            learning_rate=rate,
            phases=phases.phases_s,
            tx_bytes=sent,
            statistics=self._trainer.exchange.statistics() if wanted else None,
        )
