"""However the command ends, nothing of it is left one second later: no process, namespace, interface or qdisc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netsim_ddp.errors import LinkUnavailable
from netsim_ddp.results.files import load
from tests.links import usable

START_S, LEFT_S = 90.0, 1.0
MARK = "NETSIM_TEST_MARK"

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


def marked(mark: str) -> dict[int, str]:
    """Processes with ``mark`` in their environment, and their command lines."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
            line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if mark.encode() in environment:
            found[int(entry)] = line
    return found


def interfaces() -> list[str]:
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]
    return sorted(line.split(":")[0].strip() for line in lines)


def namespaces() -> dict[int, str]:
    """The network namespace of every process that still has one; one that is ending may have no more than that."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                found[int(entry)] = os.readlink(f"/proc/{entry}/ns/net")
    return found


Left = tuple[dict[int, str], set[str], list[str]]


def left_of(mark: str, made: set[str], before: list[str]) -> Left:
    """Processes with ``mark``, namespaces of ``made`` that are still held, and interfaces not ``before``."""
    return (
        marked(mark),
        made & set(namespaces().values()),
        [name for name in interfaces() if name not in before],
    )


@pytest.fixture(params=[pytest.param("tc", marks=pytest.mark.privileged), "bucket"])
def link(request: pytest.FixtureRequest) -> str:
    if request.param == "tc":
        try:
            with usable():
                pass
        except LinkUnavailable as error:
            pytest.skip(f"tc links cannot be made here: {error.message}")
    return str(request.param)


class Running:
    """A command in the middle of its measured steps; a busy machine delivers its ``bandwidth`` too."""

    def __init__(self, folder: Path, link: str, *more: str, bandwidth: str = "200mbps") -> None:
        self.mark = uuid.uuid4().hex
        self.interfaces = interfaces()
        words = [
            "--workers",
            "2",
            "--steps",
            "4",
            "--repeats",
            "500",
            "--method",
            "topk",
            "--baseline",
            "none",
            "--bandwidth",
            bandwidth,
            "--link",
            link,
            *more,
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "netsim_ddp", "run", *words, "--json", "out.json"],
            cwd=folder,
            env=os.environ | {MARK: self.mark, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while not (folder / "out.json").exists() or len(self.ranks()) < 3:
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < deadline, "the ranks did not start"
            time.sleep(0.05)
        here = namespaces()
        self.namespaces = {here[pid] for pid in marked(self.mark) if pid in here} - {here[os.getpid()]}
        assert bool(self.namespaces) == (link == "tc")

    def ranks(self) -> list[int]:
        """The fork server, first, and its ranks."""
        return sorted(pid for pid, line in marked(self.mark).items() if "fork_server" in line)

    def helper(self) -> int:
        return next(pid for pid, line in marked(self.mark).items() if "link.tc.helper" in line)

    def left(self) -> Left:
        return left_of(self.mark, self.namespaces, self.interfaces)

    def nothing_is_left(self) -> None:
        deadline = time.monotonic() + LEFT_S
        while (left := self.left()) != ({}, set(), []) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == ({}, set(), [])


@pytest.fixture
def running(tmp_path: Path, link: str) -> Iterator[Running]:
    command = Running(tmp_path, link)
    yield command
    for pid in marked(command.mark):
        os.kill(pid, signal.SIGKILL)
    command.process.wait(timeout=10)
    assert command.process.stderr is not None
    command.process.stderr.close()


def test_sigkill_of_the_command_leaves_nothing(running: Running) -> None:
    running.process.kill()
    running.process.wait(timeout=10)
    running.nothing_is_left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_keeps_what_it_measured(
    running: Running, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    running.process.send_signal(number)
    _, errors = running.process.communicate(timeout=30)
    assert running.process.returncode == code, errors
    assert "Traceback" not in errors
    assert "what was measured is in" in errors
    running.nothing_is_left()
    result = load(tmp_path / "out.json")
    assert result.status == "partial"
    assert result.cells[0].repeats


def test_sigkill_of_the_fork_server_ends_the_run_with_its_code(running: Running) -> None:
    os.kill(running.ranks()[0], signal.SIGKILL)
    _, errors = running.process.communicate(timeout=30)
    assert running.process.returncode == 3, errors
    assert "the process that starts the workers died: killed by SIGKILL" in errors
    assert "Traceback" not in errors
    running.nothing_is_left()


@pytest.mark.parametrize("link", [pytest.param("tc", marks=pytest.mark.privileged)], indirect=True)
def test_sigkill_of_the_links_holder_takes_everything_with_it(running: Running) -> None:
    os.kill(running.helper(), signal.SIGKILL)
    _, errors = running.process.communicate(timeout=30)
    assert running.process.returncode in (3, 4), errors
    assert "Traceback" not in errors
    running.nothing_is_left()
