"""How a rank picks its device and joins the others in a process group, and what that group's link delivers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from netsim_ddp.communication.segments import SMALL_ROUND_S, Group
from netsim_ddp.communication.shaped import group as shaped
from netsim_ddp.communication.shaped.gloo_threads import spare_senders
from netsim_ddp.errors import EnvironmentFault
from netsim_ddp.link.base import socket_environment
from netsim_ddp.link.bucket.schedule import message_bytes
from netsim_ddp.link.bucket.tcp import TcpSettings
from netsim_ddp.link.hosts import cluster_environment
from netsim_ddp.ranks.channel import RankChannel
from netsim_ddp.ranks.jobs import Job, Shared
from netsim_ddp.ranks.rank import Task
from netsim_ddp.units import counted

RESOLVER = "RES_OPTIONS"  # of resolv.conf(5); a thread reads it when it looks up its first name
UNSHAPED_BPS = 10e9  # about what a host's loopback carries
PROBE_S, PROBE_TRIES, PROBE_GOOD = 0.1, 8, 0.93
PROBE_SHORT, PROBE_LONGER = 4, 4  # so many tries, then longer ones: a rank that wakes late is less of them
PROBE_JITTERS = 50  # the probe takes this many times the jitter, so that jitter is 2% of it
PROBE_BYTES = (64 * 1024, 64 * 1024**2)


def join(
    channel: RankChannel, job: Job, shared: Shared, device: torch.device, *, spare_s: float = 0.0
) -> tuple[Group, str]:
    """Join the process group; rank 0's store listens on its own address and its port goes out of band.

    Args:
        spare_s: how much longer than usual an operation of the group may take.

    Returns:
        The group as this rank sees it, and the backend's name.
    """
    backend = _choose_backend(job, device)
    if job.world_size == 1:
        return Group(0, 1), "none"
    # Unset, Gloo resolves the hostname and may end up on the loopback.
    os.environ["GLOO_SOCKET_IFNAME"] = job.endpoint.interface
    if job.mechanism == "tc":
        os.environ |= socket_environment(job.endpoint)
    timeout = timedelta(seconds=min(4 * job.settings.timeout_s + spare_s, 1e6))
    store = None
    with _short_lookups() if job.mechanism != "host" else nullcontext():
        if job.rank == 0:
            store = TCPStore(job.endpoint.address, 0, job.world_size, True, timeout, wait_for_workers=False)
        host, port = channel.gather("store", [job.endpoint.address, store.port] if store else None)[0]
        store = store or TCPStore(host, port, job.world_size, False, timeout)
    if job.mechanism == "bucket":
        assert shared.operations is not None
        shaped.register(job.spec, shared.operations)
        backend = shaped.NAME
    dist.init_process_group(backend, store=store, rank=job.rank, world_size=job.world_size, timeout=timeout)
    spare_senders()
    rate = UNSHAPED_BPS if job.mechanism == "none" else float(job.spec.slowest_bps)
    # A message waits for its receiver's word that it is ready, so that a round is two ways.
    return Group(
        job.rank, job.world_size, link_bps=rate, round_s=SMALL_ROUND_S + 2 * job.spec.delay_s
    ), backend


@contextmanager
def _short_lookups() -> Iterator[None]:
    """Have names looked up once, for a second at most, unless the user says otherwise.

    c10d asks for the name of each address that it connects, only to log it. Of the questions of many ranks at once a
    resolver may leave one unanswered, and all ranks then wait for as long as the C library does: five seconds or ten.
    """
    given = os.environ.get(RESOLVER)
    os.environ.setdefault(RESOLVER, "timeout:1 attempts:1")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(RESOLVER, None)


class RendezvousTask(Task):
    """Where the commands of several hosts find rank 0's: rank 0 leaves ``params["value"]`` in the store that torchrun
    keeps on the master's port, the others wait for it, and all return it.

    It is a rank's task, so that only a process which has imported torch anyway and ends soon speaks torch's protocol.
    """

    def run(self) -> None:
        params = self.job.params
        self.say(f"looking for rank 0 at {params['master']}:{params['port']}")
        timeout = timedelta(seconds=params["timeout_s"])
        store = PrefixStore(
            f"netsim-{params['run']}",
            TCPStore(params["master"], params["port"], is_master=False, timeout=timeout),
        )
        if params["value"] is not None:
            store.set("command", params["value"])
        self.channel.result({"value": store.get("command").decode()})
        self.channel.gather("done")


def choose_device(wanted: str, rank: int) -> torch.device:
    """The device of this rank.

    Raises:
        EnvironmentFault: a GPU is wanted and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EnvironmentFault("--device cuda: torch finds no GPU here", hint="use --device cpu")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _choose_backend(job: Job, device: torch.device) -> str:
    """NCCL where every rank has a GPU of its own, else Gloo."""
    wanted, workers = job.settings.backend, job.world_size
    if job.mechanism == "host" and (place := cluster_environment(os.environ)) is not None:
        workers = place.local_world_size
    own_gpu = device.type == "cuda" and torch.cuda.device_count() >= workers
    if wanted == "nccl":
        if not own_gpu:
            count = torch.cuda.device_count() if device.type == "cuda" else 0
            raise EnvironmentFault(
                f"--backend nccl needs a GPU per worker: {counted(workers, 'worker')}, {counted(count, 'GPU')}",
                hint="use --backend gloo",
            )
        if job.mechanism == "bucket":
            raise EnvironmentFault(
                "the bucket link shapes Gloo only", hint="use --link tc, or --backend gloo"
            )
    return "nccl" if own_gpu and wanted != "gloo" and job.mechanism != "bucket" else "gloo"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def ring_goodput(channel: RankChannel, group: Group, job: Job, device: torch.device) -> float:
    """Goodput in bit/s of this rank while each sends to its successor.

    A host that is busy for a moment is not the link, so ranks try again until all are on target, a few times. A real
    network has no target: there the second try is as long as the first one says that it must be.
    """
    real = job.mechanism == "host"
    spec = job.spec.at_start
    rate, tries = float(spec.slowest_bps), 2 if real else PROBE_TRIES
    seconds = max(PROBE_S, PROBE_JITTERS * spec.jitter_s)
    size = PROBE_BYTES[0] if real else _probe_size(rate, seconds)
    best = 0.0
    for tried in range(1, tries + 1):
        wire = group.wire_device(device)
        sent, received = (make(size, dtype=torch.uint8, device=wire) for make in (torch.zeros, torch.empty))
        after, before = (group.rank + 1) % group.world_size, (group.rank - 1) % group.world_size
        channel.gather("probing")
        # The receiver's readiness travels, then the message.
        on_its_way = 2 * spec.delay_s + _windows_s(job, group, size)
        start = time.monotonic()
        _exchange(sent, after, received, before)
        best = max(best, size * 8 / max(1e-9, time.monotonic() - start - on_its_way))
        slowest = min(channel.gather("probed", best))
        if real:
            size = _probe_size(slowest, seconds)
        elif slowest > PROBE_GOOD * rate:
            break
        elif tried == PROBE_SHORT and spec.credit_bytes is None:
            size = _probe_size(rate, PROBE_LONGER * seconds)
    return best


def pair_goodput(
    channel: RankChannel, group: Group, job: Job, device: torch.device, together_bps: float
) -> float | None:
    """Goodput in bit/s of the slowest pair alone, where :func:`ring_goodput` found less than the line on some rank: is
    the link not what was asked for, or does this host not carry all of them at once? None where nobody needs to know.

    Args:
        together_bps: what :func:`ring_goodput` has returned here.
    """
    spec = job.spec.at_start
    rate, pair = float(spec.slowest_bps), spec.slowest_pair
    if min(channel.gather("together", together_bps)) > PROBE_GOOD * rate:
        return None
    size = _probe_size(rate, max(PROBE_S, PROBE_JITTERS * spec.jitter_s))
    data = torch.zeros(size, dtype=torch.uint8, device=group.wire_device(device))
    best = 0.0
    for _ in range(PROBE_TRIES):
        channel.gather("probing")
        start = time.monotonic()
        if group.rank in pair:
            on_its_way = 2 * spec.delay_s + _windows_s(job, group, size)
            dist.send(data, pair[1]) if group.rank == pair[0] else dist.recv(data, pair[0])
            best = max(best, size * 8 / max(1e-9, time.monotonic() - start - on_its_way))
        told = channel.gather("probed", best)
        best = told[pair[1]]
        if best > PROBE_GOOD * rate:
            break
    return best


def _windows_s(job: Job, group: Group, size: int) -> float:
    """How much longer than the line alone TCP's window makes this rank's messages of ``size`` bytes to its successor
    and from its predecessor, on a bucket link that has one."""
    if job.mechanism != "bucket" or not job.spec.windows:
        return 0.0
    me, world = group.rank, group.world_size
    spec, expected_s = job.spec.at_start, shaped.shaped_group().expected_s
    return max(
        0.0,
        *(
            expected_s([size], a, b)[0] - (message_bytes(size) * 8 / spec.pair_bps(a, b) + spec.delay_s)
            for a, b in ((me, (me + 1) % world), ((me - 1) % world, me))
        ),
    )


def lasting_bps(job: Job) -> float:
    """The least line rate that one rank's messages to another get in the long run: TCP's send buffer may keep them
    below the link's."""
    windows = job.mechanism == "bucket" and job.spec.windows
    most = TcpSettings.of_host().most_bps(2 * job.spec.delay_s) if windows else math.inf
    return min(float(job.spec.lowest_bps), most)


def _probe_size(rate_bps: float, seconds: float) -> int:
    return min(max(int(rate_bps / 8 * seconds), PROBE_BYTES[0]), PROBE_BYTES[1])


def _exchange(sent: torch.Tensor, to: int, received: torch.Tensor, of: int) -> None:
    """One message each way, posted together, as NCCL wants it."""
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, received, of)]
    ):
        work.wait()
    if sent.device.type == "cuda":
        torch.cuda.synchronize(sent.device)
