"""Files of the data sets that torchvision reads: where they are, and how they come there.

Imports no torch before a download needs it: the command tells what is missing before it makes a link, and has a process
of its own (``python -m netsim_ddp.workloads.files DATASET FOLDER``) fetch it, since ranks have no way to the internet.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from netsim_ddp.errors import EnvironmentFault, describe
from netsim_ddp.link.base import module_command
from netsim_ddp.units import format_duration

SILENCE_S = 60.0
DOWNLOAD_S = 3600.0


@dataclass(frozen=True)
class Files:
    """The class of ``torchvision.datasets`` that reads them, and where it looks below the data folder."""

    reader: str
    folder: str
    names: tuple[str, ...]


_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FILES = {
    "mnist": Files("MNIST", "MNIST/raw", _IDX),
    "fashion-mnist": Files("FashionMNIST", "FashionMNIST/raw", _IDX),
    "cifar10": Files(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    ),
}


def data_folder(data_dir: str | Path | None) -> Path:
    """``data_dir``, absolute; by default ``netsim`` in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if data_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME", "")
        data_dir = Path(cache if os.path.isabs(cache) else "~/.cache") / "netsim"
    return Path(os.path.abspath(Path(data_dir).expanduser()))


def present(dataset: str, data_dir: str | Path | None) -> bool:
    """Whether all files of ``dataset`` are there; true of a set that has none."""
    return not _missing(dataset, data_folder(data_dir))


def provide(dataset: str, data_dir: str | Path | None, *, download: bool, apart: bool = False) -> Path:
    """The folder with the files of ``dataset``, which are downloaded where they are missing and ``download`` says so.

    However many processes of a host call it, one of them downloads and the others wait for it. A file appears under
    its name when it is complete.

    Args:
        apart: download in a process of its own, so that this one imports neither torch nor torchvision.

    Raises:
        EnvironmentFault: files are missing and ``download`` is off, or it failed.
    """
    folder = data_folder(data_dir)
    if present(dataset, folder):
        return folder
    if not download:
        raise EnvironmentFault(
            f"{dataset} is not here: there is no {_missing(dataset, folder)[0].name} "
            f"in {folder / FILES[dataset].folder}",
            hint=f"write --download, or --data-dir and the folder that holds {FILES[dataset].folder}",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{dataset}.lock", dataset):
            if not present(dataset, folder):
                (_download_apart if apart else _download)(dataset, folder)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write to {folder}: {error.strerror or error}", hint="name another folder with --data-dir"
        ) from error
    return folder


def _missing(dataset: str, folder: Path) -> list[Path]:
    paths = (
        [folder / FILES[dataset].folder / name for name in FILES[dataset].names] if dataset in FILES else []
    )
    return [path for path in paths if not path.is_file()]


@contextlib.contextmanager
def _alone(path: Path, dataset: str) -> Iterator[None]:
    """Hold the lock ``path``, which another process of this host may hold for as long as a download takes."""
    import fcntl

    deadline = time.monotonic() + DOWNLOAD_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EnvironmentFault(
                        f"another process has been downloading {dataset} for {format_duration(DOWNLOAD_S)}",
                        hint=f"end the process that holds {path}",
                    ) from None
                time.sleep(0.1)
        yield


def _download(dataset: str, folder: Path) -> None:
    """Through torchvision, which checks what it gets, into a folder of its own; then files move to the data folder."""
    from torchvision import datasets

    files = FILES[dataset]
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{dataset}-", dir=folder) as fresh:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # older torchvision tells there what it does
                    getattr(datasets, files.reader)(fresh, download=True)
            except Exception as error:
                raise _no_download(dataset, folder, describe(error)) from error
            (folder / files.folder).mkdir(parents=True, exist_ok=True)
            for name in files.names:
                os.replace(Path(fresh, files.folder, name), folder / files.folder / name)
    finally:
        socket.setdefaulttimeout(patience)


def _download_apart(dataset: str, folder: Path) -> None:
    try:
        done = subprocess.run(
            module_command("netsim_ddp.workloads.files", dataset, str(folder)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _no_download(dataset, folder, f"took more than {format_duration(DOWNLOAD_S)}") from None
    if done.returncode == EnvironmentFault.exit_code:
        raise EnvironmentFault(**json.loads(done.stdout))
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise _no_download(dataset, folder, last)


def _no_download(dataset: str, folder: Path, why: str) -> EnvironmentFault:
    files = FILES[dataset]
    return EnvironmentFault(
        f"cannot download {dataset}: {why}",
        hint=f"bring {files.names[0]} and the others to {folder / files.folder}, or choose the dataset digits",
    )


def main(dataset: str, folder: str) -> int:
    """Download and tell on stdout, as JSON, what went wrong; the lock is the caller's."""
    try:
        _download(dataset, Path(folder))
    except EnvironmentFault as error:
        print(json.dumps({"message": error.message, "hint": error.hint}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
