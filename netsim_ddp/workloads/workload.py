"""What one rank trains: a model, its endless batches, its loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.names import DATASETS, check_dataset, default_dataset
from netsim_ddp.workloads.data import Batch, Loader, ShardSampler, get_dataloaders
from netsim_ddp.workloads.models import get_model, seeded


class Workload:
    """A model and the data of one rank, on one device. Built by :func:`build_workload`.

    Attributes:
        model: the bare module in training mode; whoever wraps it in DDP does so outside.
        epoch: the epoch that :meth:`next_batch` draws from, starting at 0.
    """

    def __init__(
        self, model: nn.Module, train_loader: Loader, validation_loader: Loader, device: torch.device
    ) -> None:
        self.model = model
        self.train_loader = train_loader
        self.validation_loader = validation_loader
        self.device = device
        self.epoch = 0
        self._batches: Iterator[Batch] | None = None

    @property
    def parameters_count(self) -> int:
        """Number of trained values: what a dense gradient holds."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    @property
    def batches_per_epoch(self) -> int:
        """The same on every rank."""
        return len(self.train_loader)

    def next_batch(self) -> Batch:
        """The next (images ``[batch, channels, height, width]``, targets ``[batch]``), on the device.

        Never ends: a new epoch starts with a new shuffle, so ranks that call it equally often stay in step.
        """
        if self._batches is None:
            self._start_epoch(self.epoch)
        assert self._batches is not None
        batch = next(self._batches, None)
        if batch is None:
            self._start_epoch(self.epoch + 1)
            batch = next(self._batches)
        images, targets = batch
        return images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def _start_epoch(self, epoch: int) -> None:
        assert isinstance(self.train_loader.sampler, ShardSampler)
        self.epoch = epoch
        self.train_loader.sampler.set_epoch(epoch)
        self._batches = iter(self.train_loader)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy (scalar) of logits ``[batch, classes]`` against classes ``[batch]``."""
        return functional.cross_entropy(outputs, targets)

    @torch.no_grad()
    def validate(self, model: nn.Module | None = None) -> tuple[float, float]:
        """(mean loss, accuracy in 0..1) over the whole validation set, the same on every rank.

        Evaluates ``model`` (default: this workload's) in evaluation mode and puts its mode back.
        """
        model = self.model if model is None else model
        was_training = model.training
        model.eval()
        loss, correct, count = 0.0, 0, 0
        try:
            for images, labels in self.validation_loader:
                targets = labels.to(self.device)
                outputs = model(images.to(self.device))
                loss += float(self.loss(outputs, targets)) * len(targets)
                correct += int((outputs.argmax(dim=1) == targets).sum())
                count += len(targets)
        finally:
            model.train(was_training)
        return loss / count, correct / count


def build_workload(
    *,
    model: str = "simple_cnn",
    dataset: str | None = None,
    batch_size: int = 32,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
) -> Workload:
    """Build what ``rank`` of ``world_size`` trains; ``batch_size`` is per rank.

    The parameters depend on ``seed`` only, so all ranks start equal; the data depends on seed and rank.
    ``dataset`` defaults to :func:`netsim_ddp.names.default_dataset`. One image goes through the
    model (in evaluation mode), which shows a mismatch here instead of in the first step and gives lazy
    layers their shapes.

    Raises:
        UsageError: unknown names, a batch too large for the shard, a model that does not fit the dataset.
        EnvironmentFault: the device is not available here.
    """
    dataset = default_dataset(model) if dataset is None else check_dataset(dataset)
    info = DATASETS[dataset]
    place = _device(device)
    train_loader, validation_loader = get_dataloaders(
        dataset, batch_size, rank, world_size, seed, num_workers=num_workers, pin_memory=place.type == "cuda"
    )
    module = get_model(model, info.classes, seed, channels=info.shape[0])
    _check_fit(module, model, dataset, seed)
    module.to(place).train()
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UsageError(f"model {model!r} has no parameters to train")
    return Workload(module, train_loader, validation_loader, place)


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


def _check_fit(module: nn.Module, model: str, dataset: str, seed: int) -> None:
    info = DATASETS[dataset]
    shape = "x".join(str(size) for size in info.shape)
    hint = f"use a model for {shape} images, or a dataset out of {', '.join(DATASETS)}"
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *info.shape, device=home)
    module.eval()  # one image must not touch BatchNorm's statistics, which could not be computed from it
    try:
        with torch.no_grad(), seeded(seed):
            outputs = module(image)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"model {model!r} cannot take the {shape} images of {dataset}: {reason}", hint=hint
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < info.classes:
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UsageError(
            f"model {model!r} gives {got} for one image of {dataset}, not [1, {info.classes}]", hint=hint
        )
