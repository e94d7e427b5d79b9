"""Real hosts: which rank this process is, by the variables of whoever started it, and what its interface counts."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.link.base import Counters

SIOCGIFADDR = 0x8915
SLURM_PORTS = 15000  # where nobody has said which, as other launchers under Slurm do it: by the job's number


@dataclass(frozen=True)
class ClusterEnvironment:
    """This process among all that were started together. ``store``: the launcher itself listens on the master's port
    with torch's TCPStore, as torchrun does; else rank 0 may."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master: str
    port: int
    store: bool
    run: str
    """Names this start of these processes; a restart of the same job has another."""


_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Rank, ranks, and both on this host, as torchrun, srun, and mpirun of Open MPI and of MPICH set them."""


def cluster_environment(environ: Mapping[str, str]) -> ClusterEnvironment | None:
    """Returns what ``torchrun``, ``srun``, ``mpirun`` or hand-set variables say of this process; None where it
    is not one of several.

    Raises:
        UsageError: variables that are incomplete, contradict each other or are no numbers.
    """
    names = _names(environ)
    if names is None:
        return None
    found = {name: _number(environ, name) for name in names if name in environ}
    rank, world_size = found[names[0]], found[names[1]]
    if world_size == 1:
        return None
    for (rank_name, size_name), advice in ((names[:2], "ranks count from 0; "), (names[2:], "")):
        if {rank_name, size_name} <= found.keys() and not 0 <= found[rank_name] < found[size_name]:
            raise UsageError(
                f"{rank_name}={found[rank_name]} is not a rank of {size_name}={found[size_name]}",
                hint=f"{advice}{_alone(names)}",
            )
    return ClusterEnvironment(
        rank,
        world_size,
        found.get(names[2], 0),
        found.get(names[3], 1),
        *_rendezvous(environ, names),
        store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        run=f"{environ.get('TORCHELASTIC_RUN_ID', 'run')}-{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
    )


def _names(environ: Mapping[str, str]) -> tuple[str, str, str, str] | None:
    """The variables of whoever started this process."""
    for names in _LAUNCHERS:
        # An allocation of Slurm sets the first two in a shell as well; a step is what srun has started.
        if {*names[:2]} <= environ.keys() and (names[0] != "SLURM_PROCID" or "SLURM_STEP_ID" in environ):
            return names
    return None


def leftover_warning(environ: Mapping[str, str]) -> str | None:
    """Returns a warning of variables that a shell may have kept from something else; None where a launcher set them for
    this very process, or there are none.

    Raises:
        UsageError: as :func:`cluster_environment`.
    """
    found, names = cluster_environment(environ), _names(environ)
    if found is None:
        half = [name for name in ("RANK", "WORLD_SIZE") if name in environ]
        if len(half) != 1 or names is not None:
            return None
        other = "WORLD_SIZE" if half[0] == "RANK" else "RANK"
        return f"{half[0]} is set and {other} is not: this runs alone on this machine"
    if "TORCHELASTIC_RUN_ID" in environ or names is None or found.rank > 0:
        return None
    return (
        f"{names[0]}={found.rank} and {names[1]}={found.world_size} make this rank 0 of {found.world_size} on real "
        f"hosts, which the others reach at {found.master}:{found.port}; unset {names[0]} {names[1]} to run alone on "
        "this machine"
    )


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise UsageError(
            f"{name}={environ[name]!r} is not a number", hint="torchrun and srun set it"
        ) from None


def _alone(names: Sequence[str]) -> str:
    return f"unset {' '.join(names)} to run alone on this machine"


def _rendezvous(environ: Mapping[str, str], names: Sequence[str]) -> tuple[str, int]:
    """Returns the rendezvous of the ranks: a host and its port.

    Raises:
        UsageError: nothing says so; ``names``, which make this a rank, may be left over from something else.
    """
    try:
        return _master(environ), _port(environ)
    except UsageError as error:
        given = " and ".join(f"{name}={environ[name]}" for name in names[:2])
        raise UsageError(
            f"{error.message}, and {given} make this one of several ranks",
            hint=f"{error.hint}; or {_alone([name for name in names if name in environ])}",
        ) from None


def _master(environ: Mapping[str, str]) -> str:
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    if nodes := environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST"):
        return first_host(nodes)
    raise UsageError("MASTER_ADDR is not set", hint="export MASTER_ADDR as the address of rank 0's host")


def _port(environ: Mapping[str, str]) -> int:
    if environ.get("MASTER_PORT"):
        port = _number(environ, "MASTER_PORT")
        if not 0 < port < 1 << 16:
            raise UsageError(f"MASTER_PORT={port} is not a port", hint="export one from 1024 to 65535")
        return port
    if "SLURM_JOB_ID" in environ:
        return SLURM_PORTS + _number(environ, "SLURM_JOB_ID") % 10_000
    raise UsageError("MASTER_PORT is not set", hint="export MASTER_PORT as a free port of rank 0's host")


def first_host(nodes: str) -> str:
    """``"x1000c0s[0-3]b0n0,cpu1"`` -> ``"x1000c0s0b0n0"``: where Slurm puts its first task. Every bracket of the first
    entry stands for its first number.

    Raises:
        UsageError: there is no host in the list.
    """
    entry = re.match(r"(?:[^\[,\]]|\[[^\]]*\])*(?=,|$)", nodes.strip())
    host = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", entry[0] if entry else "")
    if not re.fullmatch(r"[\w.-]+", host):
        raise UsageError(f"no host in the list {nodes!r}", hint="export MASTER_ADDR")
    return host


def route_to(master: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The address and interface through which this host reaches ``master``; ``GLOO_SOCKET_IFNAME`` overrules it.

    Raises:
        EnvironmentFault: there is none.
    """
    hint = "set GLOO_SOCKET_IFNAME to the interface that reaches the other hosts"
    known = _interfaces()
    if wanted := environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]:
        if wanted not in known:
            raise EnvironmentFault(
                f"GLOO_SOCKET_IFNAME={wanted}: no such interface with an IPv4 address", hint=hint
            )
        return known[wanted], wanted
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((master, 9))  # sends nothing: the kernel only looks up the route
            address = probe.getsockname()[0]
    except OSError as error:
        raise EnvironmentFault(f"no route to {master}: {error.strerror or error}", hint=hint) from None
    for name, owned in known.items():
        if owned == address:
            return address, name
    raise EnvironmentFault(f"no interface has the address {address} that leads to {master}", hint=hint)


def _interfaces() -> dict[str, str]:
    """IPv4 addresses by interface, those of this process's own network namespace."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                found[name] = socket.inet_ntoa(
                    fcntl.ioctl(sock.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))[20:24]
                )
    return found


def interface_counters(interface: str) -> Counters:
    """What the kernel has counted on ``interface``, and TCP's retransmits on this host.

    Raises:
        EnvironmentFault: this system has no /proc/net/dev, or no such interface in it.
    """
    try:
        devices, snmp = (Path("/proc/net", name).read_text(encoding="ascii") for name in ("dev", "snmp"))
    except OSError as error:
        raise EnvironmentFault(
            f"no interface counters: {error.strerror}", hint="real hosts need Linux"
        ) from None
    counts = {
        name.strip(): row.split()
        for name, colon, row in (line.partition(":") for line in devices.splitlines())
        if colon
    }
    if interface not in counts:
        raise EnvironmentFault(f"/proc/net/dev does not know the interface {interface}")
    fields = counts[interface]
    return Counters(
        tx_bytes=int(fields[8]),
        rx_bytes=int(fields[0]),
        drops=int(fields[11]) + int(fields[3]),
        retransmits=tcp_retransmits(snmp),
    )


def tcp_retransmits(snmp: str) -> int:
    """``RetransSegs`` of the text of /proc/net/snmp."""
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])
