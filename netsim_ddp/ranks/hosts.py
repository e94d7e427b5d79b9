"""A run over real hosts: rank 0's command steers, the others' commands fork ranks where they are.

::

    host A: command of rank 0 (Hub)  --- TCP --->  host B: command of rank 2 (serve_rank)
              |  fork server                          |  fork server
              |    rank 0  <------ its channel ---->  |    rank 2

Every command has a fork server of its own. Rank 0's tells the others what to fork; each forked rank talks straight to
rank 0's command on a TCP connection that its own command opened. So deadlines, the first failure and the end of all
are :class:`netsim_ddp.ranks.launcher.Launcher`'s, here too.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from netsim_ddp.errors import INTERRUPTED, EnvironmentFault, NetsimError, RankError, UsageError
from netsim_ddp.link.base import Counters, Endpoint
from netsim_ddp.link.hosts import ClusterEnvironment, route_to
from netsim_ddp.link.mechanisms import HostLink
from netsim_ddp.link.messages import Lines, send
from netsim_ddp.ranks.jobs import NO_METHOD, Job, from_json, settings_from_json, settings_to_json, to_json
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.scenario import Scenario, Settings, available_cores
from netsim_ddp.units import counted, format_duration

RENDEZVOUS_TIMEOUT_S = 300.0  # other hosts may start later, and import torch first
RETRY_S = 0.2
HELLO_TIMEOUT_S = 10.0
HELLO_BYTES = 4096
EXIT_WAIT_S = 10.0


class Hub(Launcher):
    """Rank 0's side, a launcher for the ranks of all hosts. Entering it waits for every rank's command."""

    def __init__(self, place: ClusterEnvironment, scenario: Scenario) -> None:
        self.link = HostLink(scenario.link_spec(), "host")
        super().__init__(self.link, scenario)
        self._place = place
        self._agents: dict[int, Lines] = {}
        self._hosts: list[str] = []
        self._token = secrets.token_hex(8)

    def __enter__(self) -> Hub:
        address, interface = route_to(self._place.master, os.environ)
        self._listener = socket.create_server(
            (address, 0 if self._place.store else self._place.port), backlog=128
        )
        try:
            super().__enter__()
            if self._place.store:
                _rendezvous(
                    self,
                    self._place,
                    self._settings,
                    f"{address} {self._listener.getsockname()[1]} {self._token}",
                )
            else:
                self._token = self._place.run
            self._accept_commands(Endpoint(0, address, interface))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _accept_commands(self, own: Endpoint) -> None:
        """Wait for every other rank's command."""
        endpoints, hosts = {0: own}, {0: socket.gethostname()}
        deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S
        while len(endpoints) < self._place.world_size:
            connection, hello = self._accept(deadline, "command")
            rank = hello["rank"]
            endpoints[rank] = Endpoint(rank, hello["address"], hello["interface"])
            hosts[rank] = hello["host"]
            self._agents[rank] = Lines(connection)
        self.link.endpoints = [endpoints[rank] for rank in range(self._place.world_size)]
        self._hosts = [f"{hosts[rank]} {endpoints[rank].address}" for rank in sorted(hosts)]

    def _accept(self, deadline: float, kind: str) -> tuple[socket.socket, dict[str, Any]]:
        """The next connection that knows the token; others are closed."""
        while True:
            self._listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                missing = sorted(set(range(1, self._place.world_size)) - set(self._agents))
                raise EnvironmentFault(
                    f"ranks {', '.join(map(str, missing)) or 'of the others'} did not come within "
                    f"{format_duration(RENDEZVOUS_TIMEOUT_S)}",
                    hint="start the same command on every host; a firewall between them may be in the way",
                ) from None
            hello = _read_hello(connection)
            if hello.get("token") == self._token and hello.get("kind") == kind:
                _keep_alive(connection)
                return connection, hello
            connection.close()

    def start(self, jobs: Sequence[Job]) -> list[socket.socket]:
        (own,) = super().start(jobs[:1])
        channels = {0: own}
        try:
            for rank in range(1, len(jobs)):  # rank 0 may have a job of its own
                order = {"jobs": to_json([jobs[rank]]), "settings": settings_to_json(jobs[rank].settings)}
                send(self._agents[rank].connection, {"kind": "fork", "start": self.starts, **order})
            deadline = time.monotonic() + self._settings.timeout_s
            while len(channels) < len(jobs):
                connection, hello = self._accept(deadline, "rank")
                channels[hello["rank"]] = connection
        except OSError as error:
            raise RankError(f"a rank's host is gone: {error.strerror}") from None
        return [channels[rank] for rank in range(len(jobs))]

    def servers(self) -> list[Lines]:
        return [*super().servers(), *self._agents.values()]

    def end_ranks(self) -> None:
        super().end_ranks()
        for agent in self._agents.values():
            with suppress(OSError):
                send(agent.connection, {"kind": "end"})

    def counters(self, values: Sequence[dict[str, int]]) -> list[Counters]:
        """Each rank's share of what its host's interface counted: bytes evenly among the ranks of a host, and what
        nobody can divide with the first of them."""
        found = []
        for rank, value in enumerate(values):
            sharing = [other for other, host in enumerate(self._hosts) if host == self._hosts[rank]]
            first = rank == sharing[0]
            found.append(
                Counters(
                    tx_bytes=value["tx_bytes"] // len(sharing),
                    rx_bytes=value["rx_bytes"] // len(sharing),
                    drops=value["drops"] if first else 0,
                    retransmits=value["retransmits"] if first else 0,
                )
            )
        return found

    @property
    def pair(self) -> tuple[int, int]:
        """The first rank and successor that are on different hosts, else the first two."""
        return next(
            (pair for pair in self.link.spec.ring() if self._hosts[pair[0]] != self._hosts[pair[1]]), (0, 1)
        )

    @property
    def ranks_per_interface(self) -> int:
        """The most ranks that share one interface."""
        return max(self._hosts.count(host) for host in self._hosts)

    def __exit__(self, *what: object) -> None:
        """Let the other commands go, each with the exit code of this one."""
        error = what[1] if len(what) > 1 else None
        code = 0 if error is None else 1
        if isinstance(error, NetsimError):
            code = error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            code = INTERRUPTED
        for agent in self._agents.values():
            with suppress(OSError):
                send(agent.connection, {"kind": "bye", "code": code})
            if code == 0:
                agent.connection.close()  # else with this process, when it has said what went wrong
        self._listener.close()
        super().__exit__(*what)
        self.link.__exit__(None, None, None)


def on_hosts(scenario: Scenario, place: ClusterEnvironment) -> Scenario:
    """``scenario`` as it can run on real hosts, defaults filled in.

    Raises:
        UsageError: it asks for something that only an emulated link or a host of one's own has.
    """
    if scenario.link not in ("auto", "host"):
        raise UsageError(
            f"--link {scenario.link}: {counted(place.world_size, 'rank')} started on hosts of their own, whose network "
            "is taken as it is",
            hint="leave --link away, or run netsim by itself",
        )
    if scenario.workers != place.world_size:
        raise UsageError(
            f"--workers {scenario.workers}: {counted(place.world_size, 'rank')} started here",
            hint="leave --workers away",
        )
    if scenario.execution == "replayed":
        raise UsageError("--execution replayed is for ranks that share a host", hint="leave --execution away")
    threads = scenario.threads or max(1, available_cores() // place.local_world_size)
    return scenario.model_copy(
        update={"link": "host", "execution": "concurrent", "threads": threads}
    ).resolved()


def serve_rank(place: ClusterEnvironment, scenario: Scenario) -> int:
    """Run another rank's command: fork what rank 0's command says, until that ends, and return the exit code.

    Raises:
        EnvironmentFault: rank 0's command cannot be found.
        RankError: it ended without a word.
    """
    address, interface = route_to(place.master, os.environ)
    with HostLink(scenario.link_spec(), "host") as link, Launcher(link, scenario) as local:
        where = (place.master, place.port, place.run)
        if place.store:
            host, port, token = _rendezvous(local, place, scenario, None).split(" ")
            where = (host, int(port), token)
        return _Agent(place, where, Endpoint(place.rank, address, interface)).serve(local)


class _Agent:
    """One rank's command while rank 0's steers."""

    def __init__(self, place: ClusterEnvironment, where: tuple[str, int, str], own: Endpoint) -> None:
        self._place, self._where, self._own = place, where, own

    def serve(self, local: Launcher) -> int:
        with self._connect("command", RENDEZVOUS_TIMEOUT_S) as hub, selectors.DefaultSelector() as selector:
            orders, (server,) = Lines(hub), local.servers()
            selector.register(hub, selectors.EVENT_READ, orders)
            selector.register(server.connection, selectors.EVENT_READ, server)
            while True:
                for key, _ in selector.select():
                    lines: Lines = key.data
                    messages = lines.receive()
                    if messages is None:
                        who = "rank 0" if lines is orders else "the process that starts this rank"
                        raise RankError(f"rank {self._place.rank}: {who} is gone", rank=self._place.rank)
                    for message in messages:
                        if message["kind"] == "bye":
                            return self._leave(hub, int(message["code"]))
                        self._obey(message, local, hub)

    @staticmethod
    def _leave(hub: socket.socket, code: int) -> int:
        """After a failure, not before rank 0's command has ended: torchrun ends all ranks when the first one fails,
        and the one that knows why should have said it by then."""
        if code != 0:
            hub.settimeout(EXIT_WAIT_S)
            with suppress(OSError):
                while hub.recv(1):
                    pass
        return code

    def _obey(self, message: dict[str, Any], local: Launcher, hub: socket.socket) -> None:
        if message["kind"] == "fork":
            with self._connect("rank", HELLO_TIMEOUT_S) as channel:
                settings = settings_from_json(message["settings"])
                local.fork(from_json(message["jobs"], settings), [channel], message["start"])
        elif message["kind"] == "end":
            local.end_ranks()
        elif message["kind"] == "exit":
            send(hub, {**message, "rank": self._place.rank})

    def _connect(self, kind: str, patience_s: float) -> socket.socket:
        """A connection to rank 0's command, which may not be there yet."""
        host, port, token = self._where
        deadline = time.monotonic() + patience_s
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=HELLO_TIMEOUT_S)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise EnvironmentFault(
                        f"rank {self._place.rank} cannot reach rank 0 at {host}:{port}: {error.strerror or error}",
                        hint="a firewall between the hosts, or another MASTER_ADDR",
                    ) from None
                time.sleep(RETRY_S)
        _keep_alive(connection)
        own = {"address": self._own.address, "interface": self._own.interface, "host": socket.gethostname()}
        send(connection, {"kind": kind, "token": token, "rank": self._place.rank, **own})
        return connection


def _rendezvous(local: Launcher, place: ClusterEnvironment, settings: Settings, value: str | None) -> str:
    """Leave ``value`` in the store of whoever started the ranks, or wait for what rank 0 left there."""
    job = Job(
        task="netsim_ddp.ranks.process_group:RendezvousTask",
        settings=settings,
        method=NO_METHOD,
        params={
            "master": place.master,
            "port": place.port,
            "run": place.run,
            "value": value,
            "timeout_s": RENDEZVOUS_TIMEOUT_S,
        },
        repeat=0,
        mechanism="none",
        spec=settings.link_spec(),
        endpoint=Endpoint(0, "", ""),
        world_size=1,
    )
    (record,) = local.run([job], lambda _point, _values: None)
    return str(record["value"])


def _read_hello(connection: socket.socket) -> dict[str, Any]:
    """Returns the first line of a connection, read byte by byte because what follows it is the rank's; an empty dict
    where that line is no greeting of netsim's."""
    connection.settimeout(HELLO_TIMEOUT_S)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < HELLO_BYTES:
            if not (byte := connection.recv(1)):
                return {}
            line += byte
        hello = json.loads(line)
    except (OSError, ValueError):
        return {}
    return hello if isinstance(hello, dict) else {}


def _keep_alive(connection: socket.socket) -> None:
    """Send small messages at once, wait without an end, and notice within half a minute that a host is silent."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
