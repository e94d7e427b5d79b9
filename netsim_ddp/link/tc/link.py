"""Linux links: one network namespace per rank on a bridge, a token bucket filter on both ends of each veth.

::

    bridge namespace:   br0 -- v0   v1   v2 ...      tbf on v<r>: what rank r receives
                               |    |    |
    rank namespaces:         eth0 eth0 eth0          tbf on eth0: what rank r sends, and its byte counter

:mod:`netsim_ddp.link.tc.plan` says which commands make the link; :class:`TcLink` has its helper run them. No name
appears on the host: the namespaces are anonymous and end with the helper. Without root the helper enters a user
namespace first, where making interfaces is allowed.

Where a forwarder delays and loses packets (:mod:`netsim_ddp.link.tc.forwarder`), every rank has a bridge of its own,
whose only other port is a device of the forwarder: ``eth0 -- v0 -- br0 -- t0``. The buckets and their counters are the
same.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from types import TracebackType
from typing import Any, Literal, Self

from netsim_ddp.errors import LinkLost, LinkUnavailable, UsageError
from netsim_ddp.link.base import Counters, Endpoint, Link, Process, enough_descriptors, host_name
from netsim_ddp.link.hosts import tcp_retransmits
from netsim_ddp.link.spec import SEGMENT_WIRE, LinkSpec
from netsim_ddp.link.tc import tun
from netsim_ddp.link.tc.channel import Channel, RemoteProcess, open_channel
from netsim_ddp.link.tc.driver import Driver
from netsim_ddp.link.tc.helper import HOSTS
from netsim_ddp.link.tc.plan import ROOMS, Shapes, address, change, needs_delay_by, netem, packet_of, plan
from netsim_ddp.link.tc.tun import ForwarderClient
from netsim_ddp.units import format_bytes

_log = logging.getLogger(__name__)
MAX_CREDIT = 2**32 - 1  # bytes: tbf's burst has 32 bits
_TRY_NETEM = "qdisc replace dev lo root netem delay 1ms"
_MODULE = "sudo modprobe sch_netem, where the kernel has it as a module"


class TcLink(Link):
    """The link of ``spec``, made by tc in namespaces of its own. See :class:`netsim_ddp.link.base.Link`.

    Args:
        beside: another link, already made, whose helper makes this one's namespaces too. A process that is started in
            either later, with ``share_namespaces``, can enter the namespaces of both; they end with ``beside``.
    """

    mechanism = "tc"
    description = "tc/tbf"

    def __init__(self, spec: LinkSpec, beside: TcLink | None = None) -> None:
        super().__init__(spec)
        if spec.tcp != "linux":
            raise UsageError(
                f"--tcp {spec.tcp} is the bucket link's: a tc link has the kernel's own TCP",
                hint="use --link bucket",
            )
        self._beside = beside
        self._numbers: dict[int | None, int | None] = {None: None}
        """By rank (None: the bridge), what the helper calls its namespace."""
        self.packet = packet_of(spec)
        self.shapes, self.congestion = Shapes.of(spec, packet=self.packet), spec.congestion or "cubic"
        self.credit_bytes, self.room = 0, ROOMS[0]
        self.delay_by: Literal["netem", "tun"] | None = None
        self._forwarder: ForwarderClient | None = None
        self._channel: Channel | None = None
        self._pipes: dict[int | None, int] = {}
        self._driver: Driver | None = None

    def __enter__(self) -> Self:
        if not sys.platform.startswith("linux"):
            raise LinkUnavailable("tc needs Linux", hint="use --link bucket")
        for tool in ("ip", "tc"):
            if find_tool(tool) is None:
                raise LinkUnavailable(
                    f"{tool} is not installed",
                    hint="install iproute2, or use --link bucket",
                    remedy="install iproute2",
                )
        credit = self.spec.credit_bytes or 0
        if credit > MAX_CREDIT:
            raise LinkUnavailable(
                f"tc holds a credit of {format_bytes(MAX_CREDIT)} at most, not {format_bytes(credit)}",
                hint="--credit 4GB, or use --link bucket",
                remedy="write --credit 4GB",
            )
        enough_descriptors(self.spec.workers)
        self._channel = open_channel() if self._beside is None else self._beside._connected()
        try:
            self._make()
        except BaseException:
            self._hang_up()
            raise
        return self

    def _hang_up(self) -> None:
        if self._channel is not None and self._beside is None:
            self._channel.close()
        self._channel = None

    @property
    def helper(self) -> object:
        """The same for all links that one helper holds."""
        return self._connected()

    def begin(self) -> None:
        if not self.spec.varies:
            return
        if self._driver is not None:
            self._driver.stop()
        namespaces = self._namespaces
        for rank in namespaces:
            if rank not in self._pipes:  # a tc in the namespace carries out each line as it is written
                reading, self._pipes[rank] = os.pipe()
                try:
                    self.spawn(
                        ["sh", "-c", 'exec "$0" -batch - <&3', str(find_tool("tc"))], rank=rank, fds=[reading]
                    )
                finally:
                    os.close(reading)
        self._driver = Driver(
            list(self.spec.stretches()),
            self.spec.period_s,
            lambda now: change(now, namespaces, self.room, self.packet),
            self._write,
        )
        self._driver.begin()

    @property
    def _namespaces(self) -> list[int | None]:
        return [None, *range(self.spec.workers)]

    def give_room(self) -> bool:
        if self.room == ROOMS[-1]:
            return False
        self.room = ROOMS[ROOMS.index(self.room) + 1]
        self.packet = packet_of(self.spec, self.room)
        self.shapes = Shapes.of(self.spec, self.room, self.packet)
        for rank, text in change(self.spec.first, self._namespaces, self.room, self.packet).items():
            _, problem = self.run_tool(rank, "tc", "-batch", "-", text=text)
            if problem is not None:
                raise _refusal("tc", problem)
        self._check_configuration()
        return True

    def _write(self, rank: int | None, text: str) -> None:
        _log_commands("tc", text, rank)
        data = text.encode()
        while data:
            data = data[os.write(self._pipes[rank], data) :]

    def _make(self) -> None:
        # The helper's own namespace is the first link's bridge; another link has one more made for its bridge.
        bridges = 0 if self._beside is None else 1
        made = self._ask("namespaces", count=self.spec.workers + bridges)
        if bridges:
            self._numbers[None] = made["first"]
        self._numbers |= {rank: made["first"] + bridges + rank for rank in range(self.spec.workers)}
        fds = made["fds"][bridges:]
        self.endpoints = [Endpoint(rank, address(rank), "eth0", namespace=fd) for rank, fd in enumerate(fds)]
        names = [f"/proc/self/fd/{fd}" for fd in fds]
        path = "/proc/sys/net/ipv4/tcp_available_congestion_control"
        known = self._ask("read", path=path, rank=0)["text"].split()
        if self.congestion not in known:
            raise LinkUnavailable(
                f"this kernel has no {self.congestion} congestion control",
                hint=f"it has {', '.join(known)}; sudo modprobe tcp_{self.congestion} may bring it",
            )
        self.delay_by = self._find_delayer()
        if self.delay_by is not None:
            self.description = f"tc/tbf+{self.delay_by}"
        if self.delay_by == "tun":
            self._forwarder = ForwarderClient(self.spec, self.spawn)
        # One process for all consecutive steps with the same tool and namespace.
        for (rank, tool), batch in groupby(
            plan(self.spec, self.shapes, names, self.congestion, self.delay_by),
            key=lambda step: (step.rank, step.argv[0]),
        ):
            _, problem = self.run_tool(
                rank, tool, "-batch", "-", text="".join(" ".join(step.argv[1:]) + "\n" for step in batch)
            )
            if problem is not None:
                raise _refusal(tool, problem)
        self._check_configuration()

    def _find_delayer(self) -> Literal["netem", "tun"] | None:
        """Who delays and loses packets here, where somebody shall."""
        how, wanted = self.spec.delay_by, needs_delay_by(self.spec)
        if not wanted and how != "tun":
            return None
        if how != "tun" and self.run_tool(None, "tc", *_TRY_NETEM.split())[1] is None:
            return "netem"
        needs = f"{' and '.join(wanted)} need{'s' if len(wanted) == 1 else ''}"
        losing = self.spec.loss or self.spec.reorder
        bucket = "" if losing else "use --link bucket, which has delay and jitter; or "
        if how == "netem":
            raise LinkUnavailable(
                f"this kernel has no netem, which {needs} on tc with --delay-by netem",
                hint=f"write --delay-by tun; or {_MODULE}",
                remedy=f"write --delay-by tun; or {_MODULE}",
                wanted=tuple(wanted),
            )
        if (reason := tun.unavailable_reason()) is None:
            return "tun"
        if how == "tun":
            raise LinkUnavailable(
                f"{reason}, which --delay-by tun needs", hint=f"{bucket}{tun.REMEDY}", remedy=tun.REMEDY
            )
        instead = f"{tun.REMEDY}; or {_MODULE}"
        raise LinkUnavailable(
            f"{needs} netem on tc, which this kernel has not, or TAP devices, and {reason}",
            hint=f"{bucket}{instead}",
            remedy=instead,
            wanted=tuple(wanted),
        )

    def _check_configuration(self) -> None:
        """Read every bucket back: an old iproute2 rounds what it was told, sometimes below one packet."""
        for (inner, outer), up, down in zip(self._buckets(), self.shapes.up, self.shapes.down, strict=True):
            for qdisc, asked in ((inner, up), (outer, down)):
                rate, burst = int(qdisc["options"]["rate"]) * 8, int(qdisc["options"]["burst"])
                if abs(rate - asked.rate_bps) > max(8, asked.rate_bps * 1e-3) or burst < SEGMENT_WIRE:
                    raise LinkUnavailable(
                        f"tc on {qdisc['dev']} was told {asked.rate_bps} bit/s, burst {asked.burst} B"
                        f" and made it {rate} bit/s, {burst} B",
                        hint="use --link bucket",
                    )
                self.credit_bytes = max(self.credit_bytes, burst)

    def _buckets(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Returns each rank's two buckets as ``tc`` shows them, its own and the bridge's."""
        bridge = self._qdiscs(None)
        return [(self._qdiscs(rank)["eth0"], bridge[f"v{rank}"]) for rank in range(self.spec.workers)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._driver is not None:
            self._driver.stop()
        while self._pipes:
            os.close(self._pipes.popitem()[1])
        if self._forwarder is not None:
            self._forwarder.close()
        self._hang_up()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        rank: int | None = None,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        share_namespaces: bool = False,
        output: tuple[int, int] = (2, 2),
        named: bool = False,
        vital: str | None = None,
    ) -> Process:
        names: list[tuple[str, str]] = []
        if named and rank is not None and os.path.exists(HOSTS):
            names = [
                (endpoint.address, host_name(endpoint.rank))
                for endpoint in (*self.endpoints[rank:], *self.endpoints[:rank])
            ]
        channel = self._connected()
        with open(os.devnull, "rb") as null:
            answer = channel.ask(
                "spawn",
                fds=[null.fileno(), *output, *fds],
                argv=list(argv),
                rank=self._numbers[rank],
                env={**os.environ, **(env or {})},
                cwd=os.getcwd(),
                share_namespaces=share_namespaces,
                names=names,
                vital=vital,
            )
        pid = int(answer["pid"])
        _log.debug("started process %s in the namespace of %s: %.160s", pid, _name(rank), " ".join(argv))
        return RemoteProcess(channel, pid)

    def counters(self) -> list[Counters]:
        if self._driver is not None and self._driver.failure is not None:
            raise LinkUnavailable(
                f"tc no longer changes the link: {self._driver.failure}", hint="run it again"
            )
        buckets = self._buckets()
        gone = [0] * self.spec.workers
        if self._forwarder is not None:
            counted = self._forwarder.counted()
            gone = [lost + overrun for lost, overrun in zip(counted.lost, counted.overrun, strict=True)]
        return [
            Counters(
                tx_bytes=int(inner["bytes"]),
                rx_bytes=int(outer["bytes"]),
                drops=int(inner["drops"]) + int(outer["drops"]) + gone[rank],
                retransmits=tcp_retransmits(self._ask("read", path="/proc/net/snmp", rank=rank)["text"]),
            )
            for rank, (inner, outer) in enumerate(buckets)
        ]

    def lost(self) -> LinkLost | None:
        channel = self._connected()
        channel.drain()
        return channel.lost

    @contextmanager
    def bare(self) -> Iterator[None]:
        self._delay(False)
        try:
            yield
        finally:
            self._delay(True)

    def _delay(self, on: bool) -> None:
        if self._forwarder is not None:
            self._forwarder.counted(bare=not on)
        if self.delay_by != "netem":
            return
        for step in netem(self.spec if on else replace(self.spec, delay_s=0.0, jitter_s=0.0, loss=0.0)):
            _, problem = self.run_tool(step.rank, *step.argv)
            if problem is not None:
                raise LinkUnavailable(f"tc cannot change the delay: {problem.splitlines()[0]}")

    def _qdiscs(self, rank: int | None) -> dict[str, dict[str, Any]]:
        """The root qdiscs of a rank's namespace, or of the bridge's, by device."""
        out, problem = self.run_tool(rank, "tc", "-s", "-j", "qdisc", "show")
        if problem is not None:
            raise LinkUnavailable(f"tc cannot show its counters: {problem.splitlines()[0]}")
        return {qdisc["dev"]: qdisc for qdisc in json.loads(out) if qdisc.get("root")}

    def _connected(self) -> Channel:
        if self._channel is None:
            raise RuntimeError("the link is used outside its with block")
        return self._channel

    def _ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """``rank`` among the arguments is this link's; the helper counts the namespaces of all its links."""
        if "rank" in arguments:
            arguments["rank"] = self._numbers[arguments["rank"]]
        return self._connected().ask(request, **arguments)

    def run_tool(self, rank: int | None, tool: str, *words: str, text: str = "") -> tuple[str, str | None]:
        """Run ``ip`` or ``tc`` in a namespace, with ``text`` as its input.

        Returns:
            what it printed; what it said when it failed, None where it did not.
        """
        _log_commands(tool, text or " ".join(words), rank)
        done = self._ask("run", argv=[find_tool(tool), *words], rank=rank, text=text)
        return done["out"], None if done["code"] == 0 else done["err"] or "no message"


def _refusal(tool: str, problem: str) -> LinkUnavailable:
    """Why ``tool`` failed. A kernel without a qdisc says only that a kind is unknown."""
    if "kind is unknown" not in problem:
        return LinkUnavailable(
            f"{tool} could not make the link: {problem.splitlines()[0]}",
            hint="use --link bucket, which needs no privileges; netsim doctor says more",
        )
    return LinkUnavailable(
        "this kernel has no tbf, which shapes the link",
        hint="sudo modprobe sch_tbf, or use --link bucket",
        remedy="sudo modprobe sch_tbf",
    )


def _name(rank: int | None) -> str:
    return "the bridge" if rank is None else f"rank {rank}"


def _log_commands(tool: str, lines: str, rank: int | None) -> None:
    for line in lines.splitlines():
        _log.debug("in the namespace of %s: %s %s", _name(rank), tool, line)


def find_tool(name: str) -> str | None:
    """``ip`` and ``tc`` are in /sbin, which an ordinary user's PATH often lacks."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
