"""Data sets that torchvision reads, from small files in the real formats: the digits as MNIST, a made-up
CIFAR-10. Nothing here leaves the machine: downloads come from a server in the test."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import pickle
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netsim_ddp.errors import EnvironmentFault
from netsim_ddp.workloads.data import get_dataloaders
from netsim_ddp.workloads.files import FILES, data_folder, present, provide
from netsim_ddp.workloads.images import raw_digits
from netsim_ddp.workloads.workload import build_workload

HELD_OUT = 297
IDX = FILES["mnist"].names


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """The format of MNIST's files: two zero bytes, the type (8 = unsigned byte), the sizes, the values."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


@functools.cache
def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The digits as MNIST has them: 28x28, 0..255, light on dark, in the middle."""
    images, labels = raw_digits()
    large = np.kron(images[:, 0].double().numpy() * 255 / 16, np.ones((3, 3)))
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).round(), labels.numpy()


def idx_files() -> dict[str, bytes]:
    images, labels = digits()
    parts = images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]
    return {name: idx(part) for name, part in zip(IDX, parts, strict=True)}


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with ``mnist`` in it, 1,500 and 297 images."""
    folder = tmp_path_factory.mktemp("data")
    place = folder / FILES["mnist"].folder
    place.mkdir(parents=True)
    for name, content in idx_files().items():
        (place / name).write_bytes(content)
    return folder


def test_mnist_is_read_and_scaled(mnist: Path) -> None:
    train, validation = get_dataloaders("mnist", 1500, data_dir=mnist)
    ((images, labels),) = train
    assert images.shape == (1500, 1, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    pixels = (images * 0.3081 + 0.1307) * 255
    wanted, target = digits()
    found = sorted(zip(pixels.round().flatten(1).int().tolist(), labels.tolist(), strict=True))
    assert found == sorted(zip(wanted[HELD_OUT:].reshape(1500, -1).tolist(), target[HELD_OUT:], strict=True))
    held = torch.cat([labels for _, labels in validation])
    assert held.tolist() == target[:HELD_OUT].tolist()  # the set's own test split, in its order


def test_a_resnet_takes_mnist(mnist: Path) -> None:
    workload = build_workload(model="resnet18", dataset="mnist", batch_size=2, data_dir=mnist)
    assert workload.model.conv1.weight.shape == (64, 1, 3, 3)
    assert workload.model(workload.next_batch()[0]).shape == (2, 10)


def test_missing_files_are_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        get_dataloaders("mnist", data_dir=tmp_path)
    place = tmp_path / "MNIST" / "raw"
    assert caught.value.message == f"mnist is not here: there is no train-images-idx3-ubyte in {place}"
    assert str(caught.value.hint).startswith(
        "write --download, or --data-dir and the folder that holds MNIST/raw"
    )
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_one_line(mnist: Path, tmp_path: Path) -> None:
    place = tmp_path / FILES["mnist"].folder
    place.mkdir(parents=True)
    for name in IDX:
        content = (mnist / FILES["mnist"].folder / name).read_bytes()
        (place / name).write_bytes(content[:-1000] if name == IDX[0] else content)
    with pytest.raises(EnvironmentFault, match=f"mnist's files in {place} are damaged: ") as caught:
        get_dataloaders("mnist", data_dir=tmp_path)
    assert "\n" not in caught.value.message


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_folder(None) == tmp_path / ".cache" / "netsim"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert data_folder(None) == Path("/elsewhere/netsim")
    assert data_folder("~/sets") == tmp_path / "sets"
    monkeypatch.chdir(tmp_path)
    assert data_folder("here") == tmp_path / "here"


# CIFAR-10, whose files torchvision compares with the checksums that it knows


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Pickles as CIFAR-10's: batch ``b`` holds four images, whose channels are 10b, 10b + 1 and 10b + 2."""
    place = tmp_path / FILES["cifar10"].folder
    place.mkdir()
    for number, name in enumerate(FILES["cifar10"].names[:-1]):
        rows = np.tile(np.repeat(np.arange(3, dtype=np.uint8) + 10 * number, 1024), (4, 1))
        (place / name).write_bytes(pickle.dumps({"data": rows, "labels": [number] * 4}, protocol=2))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    return tmp_path


def test_files_that_are_not_cifar10_s_are_refused(cifar: Path) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"cifar10's files in .* are damaged: .* not found or corrupted"
    ):
        get_dataloaders("cifar10", 2, data_dir=cifar)


def test_cifar10_is_read_and_scaled(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def known(name: str) -> list[str]:
        return [name, hashlib.md5((cifar / FILES["cifar10"].folder / name).read_bytes()).hexdigest()]

    *training, test, meta = FILES["cifar10"].names
    monkeypatch.setattr(CIFAR10, "train_list", [known(name) for name in training])
    monkeypatch.setattr(CIFAR10, "test_list", [known(test)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": known(meta)[1]})
    train, validation = get_dataloaders("cifar10", 20, data_dir=cifar)
    ((images, labels),) = train
    assert images.shape == (20, 3, 32, 32)
    mean, deviation = (
        torch.tensor(each).view(3, 1, 1) for each in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    )
    pixels = ((images * deviation + mean) * 255).round().int()
    for image, label in zip(pixels, labels.tolist(), strict=True):
        assert [channel.unique().tolist() for channel in image] == [[10 * label + i] for i in range(3)]
    assert labels.bincount().tolist() == [4] * 5
    assert torch.cat([labels for _, labels in validation]).tolist() == [5] * 4


# downloads


@pytest.fixture
def asked() -> list[str]:
    """Files that the server was asked for."""
    return []


@pytest.fixture
def server(asked: list[str]) -> Iterator[str]:
    """Serves MNIST's compressed files."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            asked.append(name)
            content = archives().get(name)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


@functools.cache
def archives() -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content, 1, mtime=0) for name, content in idx_files().items()}


@pytest.fixture
def mirror(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's MNIST comes from the server, with the checksums of the test's own files."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [server])
    known = [(name, hashlib.md5(content).hexdigest()) for name, content in archives().items()]
    monkeypatch.setattr(MNIST, "resources", known)


@pytest.mark.usefixtures("mirror")
def test_a_download_happens_once_for_all_that_want_it(tmp_path: Path, asked: list[str]) -> None:
    timeout = socket.getdefaulttimeout()
    with ThreadPoolExecutor(4) as ranks:
        found = [ranks.submit(provide, "mnist", tmp_path, download=True) for _ in range(4)]
        assert {each.result(timeout=60) for each in found} == {tmp_path}
    assert socket.getdefaulttimeout() == timeout
    assert {name: asked.count(name) for name in asked} == dict.fromkeys(archives(), asked.count(asked[0]))
    assert len(asked) <= 2 * len(archives())  # torchvision asks once more to follow redirects
    assert {path.name for path in (tmp_path / "MNIST" / "raw").iterdir()} == set(IDX)
    assert {path.name for path in tmp_path.iterdir()} == {"MNIST", ".mnist.lock"}
    train, _ = get_dataloaders("mnist", 10, 3, 4, data_dir=tmp_path, download=True)
    assert len(train) == 1500 // 4 // 10


def test_a_download_that_is_not_what_it_should_be(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's files beside the checksums that torchvision knows."""
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [server])
    with pytest.raises(EnvironmentFault, match=r"cannot download fashion-mnist: .*corrupted") as caught:
        provide("fashion-mnist", tmp_path, download=True)
    assert "\n" not in caught.value.message
    assert not present("fashion-mnist", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".fashion-mnist.lock"}


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: whoever comes is refused
        taken.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{taken.getsockname()[1]}"
        command = [
            sys.executable,
            "-m",
            "netsim_ddp",
            "run",
            "--dataset",
            "mnist",
            "--data-dir",
            "sets",
            "--download",
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "PATH": "",
                "http_proxy": proxy,
                "https_proxy": proxy,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 4, done.stderr
    said = done.stderr.splitlines()
    assert said[:-1] == [f"netsim: downloading mnist to {tmp_path}/sets, once"]
    assert said[-1].startswith("netsim: cannot download mnist: ")
    assert said[-1].endswith(
        f"(bring train-images-idx3-ubyte and the others to {tmp_path}/sets/MNIST/raw, or choose the dataset digits)"
    )


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"cannot write to .*/file/sets: ") as caught:
        provide("mnist", tmp_path / "file" / "sets", download=True)
    assert caught.value.hint == "name another folder with --data-dir"
