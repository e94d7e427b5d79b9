"""``netsim launch`` runs any program on a real link, passes on what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.results.launch import Launch
from netsim_ddp.results.recording_file import read
from netsim_ddp.scenario import build_scenario
from tests.commands import ROOT, command, complaint
from tests.distributed.test_cleanup import LEFT_S, MARK, Left, interfaces, left_of, marked, namespaces
from tests.distributed.test_run import ordinary_user, tc_or_skip
from tests.links import is_sent

pytestmark = [
    pytest.mark.alone,
    pytest.mark.privileged,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's"),
]

ENVIRONMENT = """
import json, os, sys
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME"
print(json.dumps({name: os.environ.get(name) for name in [*names.split(), "TP_SOCKET_IFNAME", "MINE"]}))
print("complaint of", os.environ["RANK"], file=sys.stderr)
print("no line end", end="")
"""
SEND = """
import os, socket, time
rank, here = int(os.environ["RANK"]), os.environ["MASTER_ADDR"]
if rank == 0:
    listener = socket.create_server((here, int(os.environ["MASTER_PORT"])))
    connection = listener.accept()[0]
    got = 0
    while data := connection.recv(1 << 16):
        got += len(data)
    print("got", got)
else:
    while True:
        try:
            connection = socket.create_connection((here, int(os.environ["MASTER_PORT"])))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)  # each attempt is bytes that are counted
    connection.sendall(bytes(2_000_000))
"""
TRAIN = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
model = DistributedDataParallel(torch.nn.Linear(500, 500))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(4, 500)).sum().backward()
    optimizer.step()
print("weights", sum(p.double().sum().item() for p in model.parameters()))
dist.destroy_process_group()
"""


RECORDED = """
import time, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
layers = [torch.nn.Linear(200, 200) for _ in range(4)]
model = DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=0.3)
optimizer = torch.optim.SGD(model.parameters(), 0.001)
for _ in range(12):
    optimizer.zero_grad()
    if dist.get_rank() == 1:
        time.sleep(0.06)
    model(torch.randn(4, 200)).mean().backward()
    optimizer.step()
dist.destroy_process_group()
"""
EASY = ["--bandwidth", "100mbps"]
"""Any host carries it: one that others use would be refused the default's 1 Gbit/s, which is not the point here."""


@pytest.fixture(scope="module", autouse=True)
def tc() -> None:
    tc_or_skip()


def launched(
    folder: Path, program: list[str], *words: str, workers: int = 2, **options: Any
) -> subprocess.CompletedProcess[str]:
    link = [] if "--bandwidth" in words else EASY
    return command(["launch", "-n", str(workers), *link, *words, "--", *program], folder, **options)


def lines_of(text: str, rank: int) -> list[str]:
    return [line.removeprefix(f"[{rank}] ") for line in text.splitlines() if line.startswith(f"[{rank}] ")]


@pytest.mark.parametrize("alone", [False, True])
def test_ranks_get_torchruns_environment_and_their_output_is_passed_on(tmp_path: Path, alone: bool) -> None:
    words = ["--one-per-node"] if alone else []
    workers = 2 if alone else 3
    program = [sys.executable, "-c", ENVIRONMENT]
    done = launched(tmp_path, program, *words, workers=workers, env={"MINE": "kept"})
    assert done.returncode == 0, done.stderr
    assert "no route to the internet" in done.stderr.splitlines()[0]
    for rank in range(workers):
        said = lines_of(done.stdout, rank)
        assert said[1:] == ["no line end"]
        assert json.loads(said[0]) == {
            "RANK": str(rank),
            "WORLD_SIZE": str(workers),
            "LOCAL_RANK": "0" if alone else str(rank),
            "LOCAL_WORLD_SIZE": "1" if alone else str(workers),
            "MASTER_ADDR": "10.77.0.1",
            "MASTER_PORT": "29500",
            "GLOO_SOCKET_IFNAME": "eth0",
            "NCCL_SOCKET_IFNAME": "=eth0",
            "TP_SOCKET_IFNAME": "eth0",
            "MINE": "kept",
        }
        assert lines_of(done.stderr, rank) == [f"complaint of {rank}"]


def test_what_ranks_send_takes_its_time_and_is_counted(tmp_path: Path) -> None:
    words = ["--bandwidth", "50mbps", "--json", "out.json"]
    done = launched(tmp_path, [sys.executable, "-c", SEND], *words)
    assert done.returncode == 0, done.stderr
    assert "[0] got 2000000" in done.stdout
    launch = Launch.model_validate_json((tmp_path / "out.json").read_text())
    receiver, sender = launch.ranks
    wire = 2_000_000 * 1514 / 1448
    assert is_sent(sender.tx_bytes, wire, sender.retransmits, within=0.01)
    assert is_sent(receiver.rx_bytes, wire, sender.retransmits, within=0.01)
    assert receiver.tx_bytes < 0.1 * wire
    assert receiver.wall_s > 0.95 * wire * 8 / 50e6
    assert launch.link.requested_bps == 50_000_000
    assert launch.link.drops == 0
    assert launch.status == "complete"


def test_the_first_failing_ranks_code_is_the_commands_and_the_others_end(tmp_path: Path) -> None:
    # Rank 1 fails first; rank 0 says goodbye when it is told to end, rank 2 does not listen.
    script = """
    case $RANK in
        0) trap 'echo goodbye; exit 5' TERM; while :; do sleep 0.1; done ;;
        1) sleep 0.3; exit 7 ;;
        2) trap '' TERM; while :; do sleep 0.1; done ;;
    esac
    """
    begin = time.monotonic()
    done = launched(tmp_path, ["sh", "-c", script], "--json", "out.json", workers=3)
    assert time.monotonic() - begin < 60
    assert done.returncode == 7, done.stderr
    assert done.stderr.splitlines()[-1] == "netsim: rank 1 failed first: exit code 7"
    assert lines_of(done.stdout, 0) == ["goodbye"]
    launch = Launch.model_validate_json((tmp_path / "out.json").read_text())
    assert (launch.status, launch.first_failing_rank, launch.exit_code) == ("failed", 1, 7)
    assert [rank.ended_here for rank in launch.ranks] == [True, False, True]


def test_a_killed_ranks_code_is_the_shells(tmp_path: Path) -> None:
    done = launched(tmp_path, ["sh", "-c", "[ $RANK = 0 ] && kill -9 $$; exec sleep 60"])
    assert done.returncode == 128 + signal.SIGKILL
    assert "rank 0 failed first: killed by SIGKILL" in done.stderr


def test_time_that_is_up_ends_the_ranks(tmp_path: Path) -> None:
    done = launched(tmp_path, ["sh", "-c", "[ $RANK = 0 ] || sleep 100"], "--timeout", "1s")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("netsim: rank 1 was still running after 1 s")


@pytest.mark.slow
def test_an_unmodified_ddp_script_trains(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    done = launched(tmp_path, [sys.executable, "train.py"], "--bandwidth", "500mbps", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    assert len({line.split("] ")[1] for line in done.stdout.splitlines()}) == 1
    launch = Launch.model_validate_json((tmp_path / "out.json").read_text())
    # Three steps of a ring all-reduce between two, and DDP's first broadcast of the weights.
    gradients = 4 * 500 * 501 * 3
    sender = launch.ranks[1]
    assert is_sent(sender.tx_bytes, gradients * 1514 / 1448, sender.retransmits, within=0.1)


def test_a_recorded_launch_says_where_its_steps_went(tmp_path: Path) -> None:
    """Rank 1 comes 60 ms late to every step: rank 0 waits for it, and both then wait for 40 Mbit/s."""
    (tmp_path / "train.py").write_text(RECORDED, encoding="utf-8")
    words = ["--bandwidth", "40mbps", "--record", "r.netsim", "--record-steps", "3", "--json", "out.json"]
    done = launched(tmp_path, [sys.executable, "train.py"], *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "netsim: recorded r.netsim, for netsim show r.netsim" in done.stderr.splitlines()[-1]
    recorded = Launch.model_validate_json((tmp_path / "out.json").read_text()).recorded
    assert recorded is not None
    assert (recorded.world_size, recorded.steps, len(recorded.ranks)) == (2, 3, 2)
    early, late = recorded.ranks
    assert early.wait_s > 0.04 > late.wait_s
    assert late.data_s > 0.06
    # A ring of two sends each gradient once: a little less than its time is exposed, for some of it was hidden.
    sent_s = sum(bucket.bytes for bucket in recorded.buckets) * 8 / 40e6
    for rank in recorded.ranks:
        assert 0.7 * sent_s < rank.exchange_s
        parts = (rank.data_s, rank.forward_s, rank.backward_s, rank.wait_s, rank.exchange_s, rank.optimizer_s)
        assert sum(parts) == pytest.approx(rank.step_s, rel=0.2)
    assert recorded.without_exchange_s < recorded.step_s - 0.7 * sent_s
    assert all(bucket.full_s is not None and bucket.apart_s is not None for bucket in recorded.buckets)
    assert recorded.key == read(tmp_path / "r.netsim").key


def test_a_program_that_trains_nothing_is_told_so_in_a_recorded_launch(tmp_path: Path) -> None:
    words = ["--record", "r.netsim"]
    done = launched(tmp_path, ["true"], *words, workers=1)
    assert done.returncode == 2, done.stderr
    assert "nothing was recorded" in done.stderr.splitlines()[-1]
    failed = launched(tmp_path, ["sh", "-c", "exit 7"], *words, workers=1)
    assert failed.returncode == 7
    assert "nothing was recorded" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    assert "cannot run 'no-such-program'" in complaint(["launch", "--", "no-such-program"], tmp_path)
    assert "has no unit" in complaint(["launch", "--bandwidth", "100", "--", "true"], tmp_path)
    assert "--timeout '5'" in complaint(["launch", "--timeout", "5", "--", "true"], tmp_path)
    assert "name a file" in complaint(["launch", "--json", "-", "--", "true"], tmp_path)
    assert "missing argument" in complaint(["launch"], tmp_path)
    assert "add --record FILE" in complaint(["launch", "--record-steps", "3", "--", "true"], tmp_path)
    for words in (["--record-steps", "none"], ["--record-steps", "0"], ["--record-gradients", "some"]):
        assert words[1] in complaint(["launch", "--record", "r", *words, "--", "true"], tmp_path)
    assert "no folder" in complaint(["launch", "--record", "missing/r", "--", "true"], tmp_path)


class Running:
    """A launch in the middle of its program."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.interfaces = interfaces()
        program = ["sh", "-c", "trap 'echo interrupted; exit 1' INT; echo up; while :; do sleep 0.1; done"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "netsim_ddp", "launch", "-n", "2", *EASY, "--", *program],
            cwd=folder,
            env=os.environ | {MARK: self.mark, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for _ in range(2):
            if not self.process.stdout.readline().endswith("up\n"):
                pytest.fail(self.process.stderr.read())
        here = namespaces()
        self.namespaces = {here[pid] for pid in marked(self.mark) if pid in here} - {here[os.getpid()]}
        assert len(self.namespaces) == 3

    def pid(self, word: str) -> int:
        return next(
            pid for pid, line in sorted(marked(self.mark).items()) if word in line and pid != self.process.pid
        )

    def left(self) -> Left:
        return left_of(self.mark, self.namespaces, self.interfaces)

    def nothing_is_left(self) -> None:
        deadline = time.monotonic() + LEFT_S
        while (left := self.left()) != ({}, set(), []) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == ({}, set(), [])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    launch = Running(tmp_path)
    yield launch
    for pid in marked(launch.mark):
        os.kill(pid, signal.SIGKILL)
    launch.process.wait(timeout=10)
    for pipe in (launch.process.stdout, launch.process.stderr):
        assert pipe is not None
        pipe.close()


def test_ctrl_c_reaches_the_ranks_and_is_130(running: Running) -> None:
    running.process.send_signal(signal.SIGINT)
    said, errors = running.process.communicate(timeout=30)
    assert running.process.returncode == 130, errors
    assert sorted(said.splitlines()) == ["[0] interrupted", "[1] interrupted"]
    assert "Traceback" not in errors
    running.nothing_is_left()


@pytest.mark.parametrize(
    ("whom", "code", "delay"),
    [
        ("command", None, 0.0),
        ("command", None, 0.3),
        ("link.tc.helper", 4, 0.05),
        ("link.tc.helper", 4, 0.3),
        ("sh -c", 137, 0.0),
    ],
)
def test_sigkill_leaves_nothing(running: Running, whom: str, code: int | None, delay: float) -> None:
    time.sleep(delay)
    if code is None:
        running.process.kill()
        running.process.wait(timeout=10)
    else:
        os.kill(running.pid(whom), signal.SIGKILL)
        _, errors = running.process.communicate(timeout=30)
        assert running.process.returncode == code, errors
        assert "Traceback" not in errors
    running.nothing_is_left()


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as an ordinary user already")
def test_an_ordinary_user_launches_too() -> None:
    user, python, environment = ordinary_user()
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are root's alone
        os.chown(home, user, user)
        done = subprocess.run(
            [
                python,
                "-m",
                "netsim_ddp",
                "launch",
                "-n",
                "2",
                "--bandwidth",
                "50mbps",
                "--",
                python,
                "-c",
                SEND,
            ],
            cwd=home,
            user=user,
            group=user,
            extra_groups=[],
            env=environment | {"HOME": home},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    if "namespaces are not allowed here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert "[0] got 2000000" in done.stdout


def trace(folder: Path, *gaps_ms: int, seconds: int = 2) -> str:
    """A trace whose packets are ``gaps_ms`` apart, each gap for ``seconds``."""
    times, now = [], 0
    for gap in gaps_ms:
        times += list(range(now + gap, now + 1000 * seconds + 1, gap))
        now += 1000 * seconds
    path = folder / "trace"
    path.write_text("".join(f"{time}\n" for time in times), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("gaps", "rate"), [((1,), "12.11 Mbit/s"), ((2, 1), "6.056 Mbit/s")])
def test_a_trace_is_launched_on_and_probed_at_its_first_rate(
    tmp_path: Path, gaps: tuple[int, ...], rate: str
) -> None:
    done = launched(tmp_path, ["true"], "--trace", trace(tmp_path, *gaps, seconds=10))
    assert done.returncode == 0, done.stderr
    assert f"behind {rate}" in done.stderr
    assert f"2 links of {rate}" in done.stderr


def test_a_probe_measures_the_trace_that_was_asked_for_or_refuses_one_that_changes(tmp_path: Path) -> None:
    words = ["probe", "-n", "2", "--link", "tc", "-o", "link.yaml", "--trace"]
    said = complaint([*words, trace(tmp_path, 2, 1)], tmp_path)
    assert said.startswith(
        "a probe measures a link that stays as it is, and this one changes: 6.056 Mbit/s; "
    )
    assert "--bandwidth 6056000bps" in said
    assert not (tmp_path / "link.yaml").exists()
    done = command([*words, trace(tmp_path, 1)], tmp_path)
    assert done.returncode in (0, 4), done.stderr  # a busy host misses the one per cent
    assert "11.58" in done.stdout, done.stdout  # the ceiling
    measured = build_scenario({"link_profile": str(tmp_path / "link.yaml")}).link_spec().rate_bps
    assert 0.8 * 12_112_000 < measured < 1.05 * 12_112_000


HOSTS = """
import os, socket, subprocess
name = socket.gethostname()
found = [socket.gethostbyname(f"netsim-{rank}") for rank in range(int(os.environ["WORLD_SIZE"]))]
print(os.environ["RANK"], name, socket.gethostbyname(name), *found, socket.gethostbyname("localhost"))
print(open("/proc/self/comm").read().strip() != "", len([each for each in os.listdir("/proc") if each.isdigit()]) > 0)
"""


def hosts_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return sorted(line.partition("] ")[2] for line in done.stdout.splitlines() if "10.77" in line)


def test_every_rank_is_on_a_host_of_its_own_name(tmp_path: Path) -> None:
    before = Path("/etc/hosts").read_bytes(), os.uname().nodename
    done = launched(tmp_path, [sys.executable, "-c", HOSTS], "--bandwidth", "50mbps", workers=3)
    everyone = "10.77.0.1 10.77.0.2 10.77.0.3 127.0.0.1"
    assert hosts_of(done) == [f"{rank} netsim-{rank} 10.77.0.{rank + 1} {everyone}" for rank in range(3)]
    assert done.stdout.count("True True") == 3  # /proc is what it was
    assert (Path("/etc/hosts").read_bytes(), os.uname().nodename) == before


def test_an_ordinary_users_ranks_have_names_too(tmp_path: Path) -> None:
    ordinary = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if subprocess.run([*ordinary, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user can be made here that has no privileges")
    words = ["launch", "-n", "2", "--bandwidth", "50mbps", "--", sys.executable, "-c", HOSTS]
    done = command(words, tmp_path, how=[*ordinary, sys.executable, "-m", "netsim_ddp"])
    if "namespaces are not allowed here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    names = [line.split()[1:3] for line in hosts_of(done)]
    assert names == [["netsim-0", "10.77.0.1"], ["netsim-1", "10.77.0.2"]]


def test_torchruns_own_rendezvous_finds_its_host(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    torchrun = (
        f"{sys.executable} -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --rdzv_id 7 --rdzv_backend c10d "
        "--rdzv_endpoint $MASTER_ADDR:29500 train.py"
    )
    done = launched(tmp_path, ["sh", "-c", torchrun], "--bandwidth", "200mbps", "--one-per-node")
    assert done.returncode == 0, done.stderr
    weights = [line.split()[-1] for line in done.stdout.splitlines() if "weights" in line]
    assert len(weights) == 2
    assert weights[0] == weights[1]
