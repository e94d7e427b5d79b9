"""What one rank trains: a model, its endless batches, its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.names import DATASETS, check_dataset, check_model, default_dataset, fitted, is_own
from netsim_ddp.workloads.batched import Batch
from netsim_ddp.workloads.data import Loader, ShardSampler, get_dataloaders
from netsim_ddp.workloads.fit import TRIED_BATCH, Trial, check_fit, check_training
from netsim_ddp.workloads.losses import Loss, build_loss, cross_entropy
from netsim_ddp.workloads.own_data import Turns, classes_of, first_of


@dataclass(eq=False)
class Workload:
    """A model and the data of one rank, on one device. Built by :func:`build_workload`.

    Images and tokens work alike: whatever the inputs are, outputs are logits whose last dimension is the classes, and
    targets have the shape of the outputs without it. With another loss they are what that takes.

    Attributes:
        model: the bare module in training mode; a caller that wants DDP wraps it.
        epoch, batch: where :meth:`next_batch` stands: ``batch`` batches of ``epoch`` have been given out. After
            ``start_epoch(epoch, batch)`` it goes on from there, which is what a checkpoint needs to keep.
        unused: names of the parameters that got no gradient when training was tried.
    """

    model: nn.Module
    train_loader: Loader
    validation_loader: Loader
    device: torch.device
    unused: list[str] = field(default_factory=list)
    epoch: int = field(default=0, init=False)
    batch: int = field(default=0, init=False)
    loss: Loss = cross_entropy
    """Of outputs and targets: scalar."""
    _batches: Iterator[Batch] | None = field(default=None, init=False, repr=False)

    @property
    def parameters_count(self) -> int:
        """Number of trained values: what a dense gradient holds."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    @property
    def batches_per_epoch(self) -> int:
        """The same on every rank."""
        return len(self.train_loader)

    def start_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Have :meth:`next_batch` go on with batch ``first_batch`` of ``epoch``; those before it are not decoded.

        Returns the batches from there on. ``first_batch`` may be ``batches_per_epoch``: then the next batch is the
        first of the epoch after.

        Raises:
            ValueError: a position outside the epoch.
        """
        if epoch < 0 or not 0 <= first_batch <= self.batches_per_epoch:
            raise ValueError(
                f"batch {first_batch} of epoch {epoch} does not exist: an epoch has {self.batches_per_epoch}"
            )
        sampler = self.train_loader.sampler
        assert isinstance(sampler, ShardSampler | Turns)
        self.epoch, self.batch = epoch, first_batch
        sampler.set_epoch(epoch, first_batch)
        self._batches = iter(self.train_loader)
        return self._batches

    def next_batch(self) -> Batch:
        """The next (inputs, targets), on the device; shapes and types as in :func:`get_dataloaders`.

        Never ends: a new epoch starts with a new shuffle, so ranks that call it equally often stay in step.
        """
        batches = self._batches if self._batches is not None else self.start_epoch(self.epoch, self.batch)
        inputs, targets = next(batches, None) or next(self.start_epoch(self.epoch + 1))
        self.batch += 1
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def correct(self, outputs: Any, targets: Tensor) -> tuple[Tensor, int]:
        """(how many of the targets have the largest logit, int64 scalar on the device; how many targets).

        (0, 0) where outputs are no logits of classes: there is no accuracy.
        """
        classes = not targets.is_floating_point() and isinstance(outputs, Tensor)
        if not classes or outputs.shape[:-1] != targets.shape:
            return torch.zeros((), dtype=torch.int64), 0
        return (outputs.argmax(dim=-1) == targets).sum(), targets.numel()

    @torch.no_grad()
    def validate(self, model: nn.Module | None = None) -> tuple[float, float | None]:
        """(mean loss, accuracy in 0..1) over the whole validation set, the same on every rank.

        Batches count by their targets. There is no accuracy (None) where outputs are no logits of classes.

        Evaluates ``model`` (default: this workload's) in evaluation mode and puts its mode back.
        """
        model = self.model if model is None else model
        was_training = model.training
        model.eval()
        loss, right, judged, count = 0.0, 0, 0, 0
        try:
            for inputs, labels in self.validation_loader:
                targets = labels.to(self.device)
                outputs = model(inputs.to(self.device))
                correct, counted = self.correct(outputs, targets)
                loss += float(self.loss(outputs, targets)) * targets.numel()
                right += int(correct)
                judged += counted
                count += targets.numel()
        finally:
            model.train(was_training)
        return loss / count, right / judged if judged else None


def build_workload(
    *,
    model: str = "simple_cnn",
    dataset: str | None = None,
    batch_size: int = 32,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    data_dir: str | Path | None = None,
    text: str | Path | None = None,
    loss: str = "cross-entropy",
    try_training: bool = False,
    refuse: Callable[[Iterable[tuple[str, nn.Parameter]]], None] = lambda _: None,
) -> Workload:
    """Build what ``rank`` of ``world_size`` trains; ``batch_size`` is per rank.

    The parameters depend on ``seed`` only, so all ranks start equal; the data depends on seed and rank.
    ``dataset`` defaults to :func:`netsim_ddp.names.default_dataset`, and the model that is built is the one that
    :func:`netsim_ddp.names.fitted` returns. One input goes through it (in evaluation mode), which shows a mismatch here
    instead of in the first step and gives lazy layers their shapes.

    Args:
        loss: a name, or ``my_module:loss`` as :func:`~netsim_ddp.workloads.losses.build_loss` takes it.
        data_dir, text: as in :func:`get_dataloaders`.
        try_training: build a model of the user's once more beforehand, and take forward and backward of two inputs.
        refuse: gets the named parameters before the first input goes through, and raises a UsageError for one that
            the training cannot take: torch would only complain of the input that does not match it.

    Raises:
        UsageError: unknown names, a batch too large for the shard, a model that does not fit the dataset.
        EnvironmentFault: the device is not available here, or the dataset's files are not.
    """
    dataset = default_dataset(model) if dataset is None else check_dataset(dataset)
    model = fitted(check_model(model), dataset)
    target = _device(device)
    train_loader, validation_loader = get_dataloaders(
        dataset,
        batch_size,
        rank,
        world_size,
        seed,
        data_dir=data_dir,
        text=text,
        pin_memory=target.type == "cuda",
    )

    loss_function = build_loss(loss, target)
    if is_own(dataset):
        data = train_loader if isinstance(train_loader, Turns) else train_loader.dataset
        classes, sample = classes_of(data), first_of(data, TRIED_BATCH, seed)
    else:
        classes, sample = DATASETS[dataset].classes, None
    trial = Trial(model, dataset, loss, loss_function, seed, classes, sample)

    def build() -> nn.Module:
        module = trial.build()
        refuse(module.named_parameters())
        check_fit(module, trial)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise UsageError(f"model {model!r} has no parameters to train")
        return module

    # A model of its own for this attempt: one that counts its calls must not be a step ahead of the other ranks'.
    known = ":" not in f"{model}{dataset}{loss}" and loss == "cross-entropy" and batch_size > 1
    unused = [] if known or not try_training else check_training(build(), trial, batch_size)
    module = build().to(target).train()
    return Workload(module, train_loader, validation_loader, target, unused=unused, loss=loss_function)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {str(name)!r} is not known", hint="write cpu, cuda or cuda:0") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EnvironmentFault(f"device {device} is not available here", hint="use the device cpu") from error
    return device
