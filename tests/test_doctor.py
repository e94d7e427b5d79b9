"""``netsim doctor``: a working machine, and machines that are broken on purpose."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from netsim_ddp.compression import kernels
from netsim_ddp.errors import LinkOffTarget, LinkUnavailable
from netsim_ddp.tools import doctor
from tests.links import usable

DEADLINE_S = 240
LINE = re.compile(r"\[(PASS|WARN|FAIL)\] (\S+) +(\d+) ms  (\S.*)")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A folder to run in, whose ``broken`` folder comes first on every Python's path."""

    folder: Path
    prefix: tuple[str, ...] = ()

    def breaks(self, module: str, source: str) -> None:
        (self.folder / "broken").mkdir(exist_ok=True)
        (self.folder / "broken" / f"{module}.py").write_text(source, encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "netsim_ddp", "doctor", *words]

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder / "broken"), **more}

    def doctor(self, *words: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def statuses(done: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    found = (LINE.match(line) for line in done.stdout.decode().splitlines())
    return {match[2]: match[1] for match in found if match}


def words(text: bytes) -> str:
    """The text without its line breaks, which depend on the width."""
    return " ".join(text.decode().split())


@pytest.mark.alone
def test_this_machine_is_fit_and_every_check_has_its_line(machine: Machine) -> None:
    done = machine.doctor("--json", "out.json")
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stderr == b""
    shown = statuses(done)
    assert list(shown) == list(doctor.CHECKS)
    assert "FAIL" not in shown.values()
    document = json.loads((machine.folder / "out.json").read_text(encoding="utf-8"))
    assert {check["name"]: check["status"] for check in document["checks"]} == shown
    assert document["status"] == ("WARN" if "WARN" in shown.values() else "PASS")
    for check in document["checks"]:
        assert bool(check["remedy"]) == (check["status"] != "PASS"), check
        assert words(check["found"].encode()) in words(done.stdout)
        assert words(check["remedy"].encode()) in words(done.stdout)


def test_json_on_stdout_is_alone_there(machine: Machine) -> None:
    machine.breaks("numba", "print('a chatty import')\n__version__ = '1.2.3'\n")
    done = machine.doctor("python", "numba", "--json", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    found = {check["name"]: check["found"] for check in json.loads(done.stdout)["checks"]}
    assert list(found) == ["python", "numba"]
    assert found["numba"] == "1.2.3"


def test_a_broken_torchvision_fails_with_what_to_install(machine: Machine) -> None:
    machine.breaks("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    done = machine.doctor("torchvision", "python")
    assert done.returncode == 4
    assert statuses(done) == {"torchvision": "FAIL", "python": "PASS"}, "the others go on"
    assert "operator torchvision::nms does not exist" in words(done.stdout)
    assert "pip install --force-reinstall torch torchvision" in done.stdout.decode()
    assert done.stderr.decode().splitlines() == ["netsim: 1 of 2 checks failed: torchvision"]
    assert max(map(len, done.stdout.decode().splitlines())) <= 80


def test_without_numba_the_torch_twin_is_checked_instead(machine: Machine) -> None:
    machine.breaks("numba", "raise ModuleNotFoundError(\"No module named 'numba'\", name='numba')")
    done = machine.doctor("numba", "kernel")
    assert done.returncode == 0
    assert statuses(done) == {"numba": "WARN", "kernel": "WARN"}
    assert "pip install numba" in words(done.stdout)


def test_a_crash_is_one_failed_check(machine: Machine) -> None:
    machine.breaks("numpy", "import os; os.kill(os.getpid(), 11)")
    done = machine.doctor("numpy")
    assert (done.returncode, statuses(done)) == (4, {"numpy": "FAIL"})
    assert "killed by SIGSEGV" in words(done.stdout)


def test_an_ascii_pipe_gets_every_message(machine: Machine) -> None:
    machine.breaks("numpy", "raise ValueError('gr\\u00f6\\u00dfer \\u2192 \\x1b[31m[/bold]')")
    done = machine.doctor("numpy", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, statuses(done)) == (4, {"numpy": "FAIL"})
    assert "gr??er" in done.stdout.decode("ascii")
    assert b"\x1b" not in done.stdout
    assert b"Traceback" not in done.stdout + done.stderr


def test_without_iproute2_the_bucket_is_advised(machine: Machine) -> None:
    machine.breaks("sitecustomize", "from netsim_ddp.link.tc import link; link.find_tool = lambda name: None")
    done = machine.doctor("tc", "netem")
    assert done.returncode == 0, done.stdout.decode()
    assert statuses(done) == {"tc": "WARN", "netem": "WARN"}
    assert "install iproute2, or use --link bucket" in words(done.stdout)


def test_without_namespaces_the_sysctl_and_the_bucket_are_named(machine: Machine) -> None:
    """A user namespace whose own limits forbid every further namespace: a machine that is really locked."""
    limits = " ".join(f"/proc/sys/user/max_{kind}_namespaces" for kind in ("user", "net"))
    lock = f'for limit in {limits}; do echo 0 > "$limit" || exit 99; done; exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "sh", "-c", lock, "sh")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode != 0:
        pytest.skip("no user namespace can be made and locked here")
    done = dataclasses.replace(machine, prefix=prefix).doctor("tc", "netem")
    assert done.returncode == 0, done.stdout.decode()
    assert statuses(done) == {"tc": "WARN", "netem": "WARN"}
    assert "namespaces are not allowed here" in words(done.stdout)
    assert "sysctl -w" in words(done.stdout)
    assert "--link bucket" in words(done.stdout)


@pytest.mark.parametrize("hint", ["run it as root", "use --link bucket; netsim doctor says more", None])
def test_a_link_that_cannot_be_made_never_refers_to_the_doctor(
    monkeypatch: pytest.MonkeyPatch, hint: str | None
) -> None:
    def refused(*_: object) -> Any:
        raise LinkUnavailable("tc could not make the link", hint=hint)

    monkeypatch.setattr(doctor, "TcLink", refused)
    finding = doctor.tc()
    assert (finding.status, finding.found) == ("WARN", "tc could not make the link")
    assert "--link bucket" in finding.remedy
    assert "doctor" not in finding.remedy
    assert doctor.netem().status == "WARN"


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("kind", "status"),
    [("tbf rate 1gbit burst 64kb limit 2mb", "PASS"), ("nosuchqdisc", "WARN")],
)
def test_netem_is_judged_by_whether_the_kernel_adds_it(
    monkeypatch: pytest.MonkeyPatch, kind: str, status: str
) -> None:
    """A kernel cannot be given netem, nor robbed of it: a qdisc that links need anyway stands in for it."""
    try:
        with usable():
            pass
    except LinkUnavailable as error:
        pytest.skip(f"tc links cannot be made here: {error.message}")
    monkeypatch.setattr(doctor, "_NETEM", f"qdisc add dev lo root {kind}")
    finding = doctor.netem()
    assert finding.status == status, finding
    assert bool(finding.remedy) == (status == "WARN")


def test_a_check_that_hangs_is_ended_at_its_deadline(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.breaks("numpy", "import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(machine.folder / "broken"))
    monkeypatch.setitem(doctor.CHECKS, "numpy", dataclasses.replace(doctor.CHECKS["numpy"], deadline_s=0.5))  # type: ignore[arg-type]
    check = doctor.run_check("numpy")
    assert (check.status, check.found) == ("FAIL", "no answer within 0.5 s")
    assert check.remedy == "try again: netsim doctor numpy"


def test_killing_the_doctor_ends_the_check_that_runs(machine: Machine) -> None:
    machine.breaks("numpy", "import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(600)")
    doctor = subprocess.Popen(
        machine.command("numpy"), cwd=machine.folder, env=machine.environment(), stdout=subprocess.DEVNULL
    )
    noted = machine.folder / "pid"
    until(lambda: noted.exists() and noted.read_text().endswith("\n"))
    doctor.kill()
    assert doctor.wait(timeout=10) == -signal.SIGKILL
    until(lambda: not alive(int(noted.read_text())))


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether ``pid`` runs; a zombie that nobody reaps yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize("what", ["values", "indices"])
def test_a_kernel_that_errs_is_found(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    honest = kernels.accumulate_select

    def wrong(
        grad: Tensor, residual: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor
    ) -> None:
        honest(grad, residual, offsets, ks, values, indices)
        {"values": values, "indices": indices}[what][-5] += 1  # among the zeros, where all are equal

    assert doctor.kernel().status in ("PASS", "WARN")
    monkeypatch.setattr(kernels, "accumulate_select", wrong)
    finding = doctor.kernel()
    assert finding.status == "FAIL"


def test_a_link_off_target_warns_when_the_step_itself_works(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(**values: Any) -> None:
        trained.append(values.get("link", "auto"))
        if trained[-1] == "auto":
            raise LinkOffTarget("the link delivers 80 Mbit/s", hint="free this machine's cores")

    monkeypatch.setattr(doctor, "_train", train)
    finding = doctor.step()
    assert trained == ["auto", "none"]
    assert (finding.status, finding.remedy) == ("WARN", "free this machine's cores")
    assert "80 Mbit/s" in finding.found


@pytest.mark.parametrize(
    ("count", "load", "status", "advice"),
    [(8, 0.5, "PASS", ""), (8, 6.0, "WARN", "other programs"), (1, 0.1, "WARN", "more cores")],
)
def test_a_busy_or_small_machine_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, count: int, load: float, status: str, advice: str
) -> None:
    monkeypatch.setattr("netsim_ddp.scenario.available_cores", lambda: count)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(doctor, "available_bytes", lambda: 16 * 10**9)
    finding = doctor.cores()
    assert finding.status == status
    assert advice in finding.remedy


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["tcc"], "gpu, tc, netem"),
        (["python", "--json", "no/such/out.json"], "cannot write no/such/out.json"),
    ],
)
def test_bad_usage_is_one_line(machine: Machine, wrong: list[str], said: str) -> None:
    done = machine.doctor(*wrong)
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
