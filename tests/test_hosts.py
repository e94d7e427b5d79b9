"""Who started this process, where it stands among the others, and what its interface counts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.link.hosts import (
    cluster_environment,
    first_host,
    interface_counters,
    leftover_warning,
    route_to,
)
from netsim_ddp.ranks.hosts import on_hosts
from netsim_ddp.scenario import Scenario, validate
from tests.commands import complaint

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[003-008,012]",
}


def test_torchruns_variables_are_read() -> None:
    place = cluster_environment(TORCHRUN)
    assert place is not None
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (3, 4, 1, 2)
    assert (place.master, place.port, place.store) == ("10.0.0.1", 29500, True)
    # A restarted job must not meet what its first try left in the store.
    other = cluster_environment(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "3"})
    assert other is not None
    assert other.run != place.run


def test_sruns_variables_are_read() -> None:
    place = cluster_environment(SRUN)
    assert place is not None
    assert (place.rank, place.world_size, place.local_rank) == (5, 8, 1)
    assert (place.master, place.port, place.store) == ("gpu003", 15000 + 3456, False)
    named = cluster_environment(SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert named is not None
    assert (named.master, named.port) == ("head", 1234)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
        {
            name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"
        },  # a batch script, not a task
    ],
)
def test_a_process_by_itself_has_no_place(environ: dict[str, str]) -> None:
    assert cluster_environment(environ) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "x"}, "RANK='x' is not a number"),
        ({"RANK": "4"}, "RANK=4 is not a rank of WORLD_SIZE=4"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is not a port"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not a rank of LOCAL_WORLD_SIZE=2"),
    ],
)
def test_incomplete_variables_are_named(changes: dict[str, str | None], said: str) -> None:
    environ = {name: value for name, value in (TORCHRUN | changes).items() if value is not None}
    with pytest.raises(UsageError) as caught:
        cluster_environment(environ)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[003-008,012]", "gpu003"),
        ("a,b", "a"),
        ("node7", "node7"),
        ("x[1,5-9],y2", "x1"),
        ("n-[10-11]", "n-10"),
        ("x1000c0s[0-3]b0n0", "x1000c0s0b0n0"),
        ("gpu-[01,04]-3,gpu-7", "gpu-01-3"),
        ("r[1-2]n[01-16]", "r1n01"),
        ("a.b.c,d[1-2]", "a.b.c"),
        ("nid[001234]", "nid001234"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", ",", "[", "gpu[1-2", "a b"])
def test_what_is_no_node_list_is_refused(nodes: str) -> None:
    with pytest.raises(UsageError, match="no host in the list"):
        first_host(nodes)


def test_mpiruns_variables_are_read() -> None:
    ours = {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    place = cluster_environment({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"} | ours)
    assert place is not None
    assert (place.rank, place.world_size, place.master) == (1, 2, "head")


@pytest.mark.parametrize(
    "names",
    [
        ("PMI_RANK", "PMI_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"),
        ("RANK", "WORLD_SIZE"),
    ],
)
def test_variables_without_a_meeting_place_are_named(names: tuple[str, ...]) -> None:
    values = dict(zip(names, ("1", "2", "1"), strict=False))
    for more, missing in (({}, "MASTER_ADDR"), ({"MASTER_ADDR": "head"}, "MASTER_PORT")):
        with pytest.raises(UsageError) as caught:
            cluster_environment(values | more)
        assert f"{missing} is not set, and {names[0]}=1 and {names[1]}=2 make this" in caught.value.message
        assert f"unset {names[0]} {names[1]}" in str(caught.value.hint)


LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def test_variables_that_may_be_left_over_are_told() -> None:
    note = leftover_warning(LEFT_OVER)
    assert note is not None
    for part in (
        "RANK=0 and WORLD_SIZE=2",
        "rank 0 of 2 on real hosts",
        "127.0.0.1:29511",
        "unset RANK WORLD_SIZE",
    ):
        assert part in note
    assert leftover_warning(TORCHRUN | {"RANK": "0"}) is None  # torchrun set them for this process
    assert leftover_warning({}) is None
    assert (
        leftover_warning({"WORLD_SIZE": "4"})
        == "WORLD_SIZE is set and RANK is not: this runs alone on this machine"
    )
    assert "SLURM_PROCID=0" in str(leftover_warning(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}))


def test_a_command_with_left_over_variables_says_so_before_it_waits(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "netsim_ddp", "run", "--steps", "1", "--repeats", "1"]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | LEFT_OVER,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert process.stderr is not None
        assert "unset RANK WORLD_SIZE to run alone" in process.stderr.readline()
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_interface_to_the_master_and_its_counters() -> None:
    assert route_to("127.0.0.1", {}) == ("127.0.0.1", "lo")
    assert route_to("127.0.0.1", {"GLOO_SOCKET_IFNAME": "lo"}) == ("127.0.0.1", "lo")
    with pytest.raises(EnvironmentFault, match="no such interface"):
        route_to("127.0.0.1", {"GLOO_SOCKET_IFNAME": "nothing9"})
    with pytest.raises(EnvironmentFault, match="nothing9"):
        interface_counters("nothing9")
    before = interface_counters("lo")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sender,
        server.accept()[0] as receiver,
    ):
        sender.sendall(bytes(100_000))
        got = 0
        while got < 100_000:
            got += len(receiver.recv(65536))
    after = interface_counters("lo")
    assert after.tx_bytes - before.tx_bytes >= 100_000
    assert after.rx_bytes - before.rx_bytes >= 100_000


def scenario(**values: Any) -> Scenario:
    return validate({"workers": 4, **values})


def test_real_hosts_take_defaults_of_their_own() -> None:
    place = cluster_environment(TORCHRUN)
    assert place is not None
    there = on_hosts(scenario(), place)
    assert (there.link, there.execution) == ("host", "concurrent")
    for values in ({"link": "tc"}, {"execution": "replayed"}, {"workers": 2}):
        with pytest.raises(UsageError):
            on_hosts(scenario(**values), place)


def test_a_shaped_link_under_torchrun_and_a_host_link_without_it_are_refused(tmp_path: Path) -> None:
    said = complaint(["run", "--link", "bucket"], tmp_path, env=TORCHRUN)
    assert "4 ranks started on hosts of their own" in said
    assert "leave --workers away" in complaint(["probe", "--workers", "2"], tmp_path, env=TORCHRUN)
    assert "torchrun or srun" in complaint(["run", "--link", "host", *["--steps", "1"]], tmp_path)
