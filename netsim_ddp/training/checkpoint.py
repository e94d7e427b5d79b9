"""Checkpoints on disk: a folder per save, complete or not there. Imports no torch: the command commits and checks them.

::

    FOLDER/run.json                     the result so far, with the whole scenario
    FOLDER/topk,ratio=0.01/seed-0/      one training
      step-000120/                      one checkpoint
        shared.pt rank-0.pt ...         what all ranks share, and each rank's own
        manifest.json                   where the training stood, its curves, every file's SHA-256
      latest                            the name of the newest checkpoint

The ranks write and flush their files into ``step-000120.part``; when all have, the command writes the manifest,
renames the folder and replaces ``latest``. Whatever is killed when, ``latest`` names a complete checkpoint. The two
newest stay.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from netsim_ddp.errors import UsageError, cannot_write
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.results.fields import Strict
from netsim_ddp.results.files import to_json, write_whole
from netsim_ddp.results.training_record import EpochRecord
from netsim_ddp.units import counted

KEPT = 2
RUN_FILE = "run.json"
_PART = ".part"
_LATEST = "latest"
_MANIFEST = "manifest.json"
FREE_KEYS = frozenset(
    {
        *("epochs", "repeats", "methods", "ratio", "timeout_s", "time_budget_s", "target", "step_epochs"),
        *("checkpoint", "checkpoint_epochs", "checkpoint_steps", "resume", "resume_residuals", "log_dir"),
        *("data_dir", "download", "tuned_rates", "tune_seed", "threads", "workers", "seed", "overlap"),
        *("learning_rate",),
    }
)
"""Settings that may differ when a training goes on; the method, the seed and the rate are compared on their own."""


Whole = Annotated[int, Field(ge=0, le=10**18)]


class FileSum(Strict):
    """A file as it was written."""

    sha256: str
    bytes: int


class Manifest(Strict):
    """How far a training was when a checkpoint was saved.

    ``epoch`` and ``step`` are where it goes on: ``step`` steps of ``epoch`` are done. The byte lists are per rank:
    ``tx_epoch`` since this epoch's begin, the others since the training's.
    """

    version: Literal[1] = 1
    method: str
    params: dict[str, Any]
    seed: Whole
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    world_size: Whole
    threads: Whole
    epoch: Whole
    step: Whole
    global_step: Whole
    settings: dict[str, Any]
    history: list[EpochRecord] = Field(default_factory=list)
    tx_epoch: list[Whole]
    tx_total: list[Whole]
    rx_total: list[Whole]
    payload: list[Whole]
    drops: Whole = 0
    retransmits: Whole = 0
    files: dict[str, FileSum]


_STEP_FOLDER = re.compile(r"step-[0-9]+")


def step_folder(global_step: int) -> str:
    return f"step-{global_step:06d}"


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, root: Path, method: MethodSpec, seed: int) -> None:
        self.folder = root / re.sub(r"[^\w.,=:+-]", "_", method.id) / f"seed-{seed}"

    def clear_parts(self) -> None:
        """Make the folder; take away what a killed run left half done."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in self.folder.glob(f"*{_PART}"):
                shutil.rmtree(part, ignore_errors=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def part(self, global_step: int) -> Path:
        """Returns the folder that the ranks write to before :meth:`commit`."""
        return self.folder / (step_folder(global_step) + _PART)

    def commit(self, manifest: Manifest) -> Path:
        """Make the files of :meth:`part` the newest checkpoint."""
        part, name = self.part(manifest.global_step), step_folder(manifest.global_step)
        whole = self.folder / name
        write_whole(to_json(manifest), part / _MANIFEST)
        if whole.exists():  # a run that went on from an older one saves this step again
            self._remove(whole)
        _flush(part)
        part.rename(whole)
        _flush(self.folder)
        write_whole(name + "\n", self.folder / _LATEST)
        _flush(self.folder)
        for old in self._all()[:-KEPT]:
            if old.name != name:
                self._remove(old)
        return whole

    def _remove(self, folder: Path) -> None:
        """Rename a checkpoint, then remove it: a removal that is cut short must leave no half one under its name."""
        doomed = folder.with_name(folder.name + ".old" + _PART)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _all(self) -> list[Path]:
        """The checkpoints, oldest first: by number, since a millionth step has a digit more than its name has room."""
        return sorted(
            (path for path in self.folder.glob("step-*") if _STEP_FOLDER.fullmatch(path.name)),
            key=lambda path: int(path.name.removeprefix("step-")),
        )

    def latest(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint, every file checked; None where there is none.

        Raises:
            UsageError: one line that names the file that is missing or damaged.
        """
        pointer = self.folder / _LATEST
        if not pointer.exists():
            return None
        try:
            name = pointer.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            name = ""
        if not _STEP_FOLDER.fullmatch(name):
            raise UsageError(f"{pointer} names no checkpoint", hint="write for example step-000120 into it")
        folder = self.folder / name
        manifest = self._manifest(folder)
        for file, known in manifest.files.items():
            self._check(folder / file, known)
        return folder, manifest

    def _manifest(self, folder: Path) -> Manifest:
        path = folder / _MANIFEST
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except OSError as error:
            raise self._broken(path, f"cannot be read: {error.strerror}") from None
        except ValidationError:
            raise self._broken(path, "is damaged") from None

    def _check(self, path: Path, known: FileSum) -> None:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise self._broken(path, f"cannot be read: {error.strerror}") from None
        if digest.hexdigest() != known.sha256:
            raise self._broken(path, "is damaged: its SHA-256 is not the manifest's")

    def _broken(self, path: Path, problem: str) -> UsageError:
        others = [other.name for other in self._all() if other != path.parent]
        return UsageError(
            f"checkpoint file {path} {problem}",
            hint=f"to go on from the one before, write {others[-1]} into {self.folder / _LATEST}"
            if others
            else f"start again in another folder, or remove {self.folder}",
        )


def check_same(
    manifest: Manifest,
    settings: Mapping[str, Any],
    method: MethodSpec,
    *,
    workers: int,
    epochs: int,
    rule: str,
) -> None:
    """Refuse to go on as something else.

    Args:
        settings: of this run, as :func:`settings_of` gives them.
        workers, epochs: of this run.
        rule: what becomes of the residuals with another number of workers.

    Raises:
        UsageError: one line with the setting that differs.
    """
    check_settings(manifest.settings, settings)
    which = f"{manifest.method} with seed {manifest.seed}"
    refusals = [
        (
            (manifest.epoch, manifest.step) > (epochs, 0),
            f"the checkpoint of {which} has {counted(manifest.epoch, 'epoch')} behind it, and --epochs is {epochs}",
            f"write --epochs {manifest.epoch + (manifest.step > 0)} or more",
        ),
        (
            dict(method.params) != manifest.params,
            f"the checkpoint is of {manifest.method} {manifest.params}, not {dict(method.params)}",
            "leave the method as it was, or start again in another folder",
        ),
        (
            manifest.world_size != workers and rule == "none",
            f"the checkpoint is of {counted(manifest.world_size, 'worker')}, not {workers}: residuals belong to "
            "their ranks",
            f"use --workers {manifest.world_size}, or --resume-residuals sum (keeps what is pending) or drop",
        ),
        (
            manifest.world_size != workers and manifest.epoch == epochs,
            f"{which} has ended with {counted(manifest.world_size, 'worker')}: its curve is not one of {workers}",
            f"use --workers {manifest.world_size}, or more --epochs",
        ),
    ]
    for differs, problem, hint in refusals:
        if differs:
            raise UsageError(problem, hint=hint)


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings.

    Raises:
        UsageError: one line with the first that differs.
    """
    for key in sorted(before.keys() | now.keys()):
        saved, here = before.get(key), now.get(key)
        if saved != here:
            raise UsageError(
                f"the checkpoint was trained with {key} {saved}, not {here}",
                hint=f"leave {key} as it was, or start again in another folder",
            )


def settings_of(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """What a training's parameters depend on, out of a resolved scenario as JSON carries it."""
    return {key: value for key, value in scenario.items() if key not in FREE_KEYS}


def _flush(folder: Path) -> None:
    """Have the folder's own entries reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def run_file(folder: Path) -> Path:
    """The result and the settings of the run whose checkpoints are in ``folder``.

    Raises:
        UsageError: there are none.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise UsageError(
            f"there is nothing to resume in {folder}: no {RUN_FILE}",
            hint="name the folder that --checkpoint named",
        )
    return path
