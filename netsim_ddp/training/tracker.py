"""Scalars of a training: to TensorBoard where it is installed, else to a file of JSON lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.errors import EnvironmentFault, UsageError, cannot_write
from netsim_ddp.reading import read_text
from netsim_ddp.results.files import write_whole

FILE_NAME = "metrics.jsonl"


class MetricsTracker:
    """Writes scalars by step; use it in a loop of your own, on one rank.

    ::

        with MetricsTracker("logs/topk") as tracker:
            for step in range(steps):
                ...
                tracker.log_step(step, loss=float(loss), statistics=backend.statistics())
            tracker.log(step, {"validation/accuracy": accuracy})

    Args:
        folder: made if it is missing. Every training needs its own.
        backend: ``tensorboard``, ``jsonl`` (one object per line: ``step``, ``time`` in Unix seconds, and the scalars),
            or ``auto``: tensorboard where it is installed.
        first_step: a training that goes on from a checkpoint logs from here; what the file holds of this step and
            later ones is dropped first.

    Raises:
        UsageError: the folder cannot be written, or the backend is not known.
        EnvironmentFault: ``tensorboard`` was asked for and is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: Literal["auto", "tensorboard", "jsonl"] = "auto",
        first_step: int = 0,
    ) -> None:
        if backend not in ("auto", "tensorboard", "jsonl"):
            raise UsageError(
                f"there is no log of kind {backend!r}", hint="choose from auto, tensorboard, jsonl"
            )
        self.folder = Path(folder)
        installed = find_spec("tensorboard") is not None
        if backend == "tensorboard" and not installed:
            raise EnvironmentFault(
                "tensorboard is not installed", hint="pip install 'netsim-ddp[tensorboard]', or use jsonl"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer: Any = None
            if installed and backend != "jsonl":
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=first_step)
            else:
                path = self.folder / FILE_NAME
                _drop_from(path, first_step)
                self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    @property
    def backend(self) -> str:
        """``tensorboard`` or ``jsonl``."""
        return "jsonl" if self._writer is None else "tensorboard"

    def log(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Write ``scalars`` of ``step``; those that are None are left out. NaN and infinities are findings: JSON
        lines hold them as strings."""
        found = {name: float(value) for name, value in scalars.items() if value is not None}
        if self._writer is not None:
            for name, value in found.items():
                self._writer.add_scalar(name, value, step)
            return
        plain = {name: value if math.isfinite(value) else str(value) for name, value in found.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **plain}) + "\n")

    def log_step(
        self,
        step: int,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
        learning_rate: float | None = None,
        phases: Mapping[str, float] | None = None,
        tx_bytes: float | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        """What a training step has to say of itself.

        Args:
            loss, accuracy: of this step's batch, on this rank.
            phases: seconds by phase; written as ``time/compute`` and so on.
            tx_bytes: bytes that this rank sent.
            statistics: of :meth:`netsim_ddp.DistributedBackend.statistics`; written are ``compression/energy_kept``,
                ``compression/residual_norm``, ``compression/ratio`` and ``compression/payload_bytes``.
        """
        scalars: dict[str, float | None] = {
            "train/loss": loss,
            "train/batch_accuracy": accuracy,
            "train/learning_rate": learning_rate,
            "bytes/sent": tx_bytes,
            **{f"time/{phase}": seconds for phase, seconds in (phases or {}).items()},
        }
        if statistics is not None:
            scalars |= {
                "compression/energy_kept": statistics.energy_kept,
                "compression/residual_norm": statistics.residual_norm,
                "compression/ratio": statistics.ratio,
                "compression/payload_bytes": statistics.payload_bytes,
            }
        self.log(step, scalars)

    def close(self) -> None:
        """Everything is on disk when this returns."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop_from(path: Path, first_step: int) -> None:
    """Keep only the lines of steps before ``first_step``; a last line that was cut short goes too."""
    if not path.exists():
        return
    lines = read_text(path, hint="remove it").splitlines(keepends=True)
    write_whole("".join(line for line in lines if _step_of(line) < first_step), path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
