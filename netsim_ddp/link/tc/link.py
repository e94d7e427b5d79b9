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
from types import TracebackType
from typing import Any, Literal, Self

from netsim_ddp.errors import LinkLost, LinkUnavailable, UsageError
from netsim_ddp.link.base import Counters, Endpoint, Link, Process
from netsim_ddp.link.descriptors import enough_descriptors
from netsim_ddp.link.environment import host_name
from netsim_ddp.link.hosts import tcp_retransmits
from netsim_ddp.link.spec import SEGMENT_WIRE, LinkSpec
from netsim_ddp.link.tc import tun
from netsim_ddp.link.tc.channel import Channel, RemoteProcess, open_channel
from netsim_ddp.link.tc.driver import Driver
from netsim_ddp.link.tc.helper import HOSTS
from netsim_ddp.link.tc.plan import Shape, Shapes, Step, address, change, needs_delay_by, netem, plan
from netsim_ddp.link.tc.tun import Carried, Forwarding
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
        self._places: dict[int | None, int | None] = {None: None}
        self.shapes = Shapes.of(spec)
        self.congestion = spec.congestion or "cubic"
        self.credit_bytes = 0
        self.delay_by: Literal["netem", "tun"] | None = None
        self._forwarding: Forwarding | None = None
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
            most, asked = format_bytes(MAX_CREDIT), format_bytes(credit)
            hint = "--credit 4GB, or use --link bucket"
            raise LinkUnavailable(
                f"tc holds a credit of {most} at most, not {asked}", hint=hint, remedy="write --credit 4GB"
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
        namespaces = [None, *range(self.spec.workers)]
        for rank in namespaces:
            if rank not in self._pipes:
                self._pipes[rank] = self._open_pipe(rank)
        stretches = list(self.spec.stretches())
        self._driver = Driver(stretches, self.spec.period_s, lambda now: change(now, namespaces), self._write)
        self._driver.begin()

    def _open_pipe(self, rank: int | None) -> int:
        """A ``tc`` in ``rank``'s namespace that carries out each line as it is written."""
        reading, writing = os.pipe()
        try:
            words = ["sh", "-c", 'exec "$0" -batch - <&3', str(find_tool("tc"))]
            self.spawn(words, rank=rank, fds=[reading])
        finally:
            os.close(reading)
        return writing

    def _write(self, rank: int | None, text: str) -> None:
        _log_commands("tc", text, rank)
        data = text.encode()
        while data:
            data = data[os.write(self._pipes[rank], data) :]

    def _make(self) -> None:
        fds = self._namespaces()
        self.endpoints = [Endpoint(rank, address(rank), "eth0", namespace=fd) for rank, fd in enumerate(fds)]
        names = [f"/proc/self/fd/{fd}" for fd in fds]
        self._check_congestion()
        self.delay_by = self._find_delayer()
        if self.delay_by is not None:
            self.description = f"tc/tbf+{self.delay_by}"
        if self.delay_by == "tun":
            self._forwarding = Forwarding(self.spec, self._spawn_forwarder)
        for rank, steps in _batches(plan(self.spec, self.shapes, names, self.congestion, self.delay_by)):
            tool = steps[0].argv[0]
            text = "".join(" ".join(step.argv[1:]) + "\n" for step in steps)
            done = self._ask("run", argv=[find_tool(tool), "-batch", "-"], rank=rank, text=text)
            if done["code"] != 0:
                raise self._refusal(tool, done["err"])
        self._check_configuration()

    def _namespaces(self) -> list[int]:
        """The descriptors of the ranks' namespaces. The helper's own is the first link's bridge namespace."""
        bridges = 0 if self._beside is None else 1
        made = self._ask("namespaces", count=self.spec.workers + bridges)
        first: int = made["first"]
        if bridges:
            self._places[None] = first
        self._places |= {rank: first + bridges + rank for rank in range(self.spec.workers)}
        fds: list[int] = made["fds"][bridges:]
        return fds

    def _check_congestion(self) -> None:
        known = self._ask("read", path="/proc/sys/net/ipv4/tcp_available_congestion_control", rank=0)[
            "text"
        ].split()
        if self.congestion not in known:
            raise LinkUnavailable(
                f"this kernel has no {self.congestion} congestion control",
                hint=f"it has {', '.join(known)}; sudo modprobe tcp_{self.congestion} may bring it",
            )

    def _find_delayer(self) -> Literal["netem", "tun"] | None:
        """Who delays and loses packets here, where somebody shall."""
        how, wanted = self.spec.delay_by, needs_delay_by(self.spec)
        if not wanted and how != "tun":
            return None
        if (
            how != "tun"
            and self._ask("run", argv=[find_tool("tc"), *_TRY_NETEM.split()], rank=None)["code"] == 0
        ):
            return "netem"
        needs = f"{' and '.join(wanted)} need{'s' if len(wanted) == 1 else ''}"
        bucket = (
            ""
            if self.spec.loss or self.spec.reorder
            else "use --link bucket, which has delay and jitter; or "
        )
        if how == "netem":
            raise LinkUnavailable(
                f"this kernel has no netem, which {needs} on tc with --delay-by netem",
                hint=f"write --delay-by tun; or {_MODULE}",
                remedy=f"write --delay-by tun; or {_MODULE}",
                wanted=tuple(wanted),
            )
        if (reason := tun.obstacle()) is None:
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

    def _spawn_forwarder(self, words: list[str], fd: int) -> None:
        self._spawn(words, None, fds=[fd], vital=tun.FORWARDER)

    def _refusal(self, tool: str, said: str) -> LinkUnavailable:
        """Why ``tool`` failed. A kernel without a qdisc says only that a kind is unknown."""
        if "kind is unknown" not in said:
            return LinkUnavailable(
                f"{tool} could not make the link: {_first_line(said)}",
                hint="use --link bucket, which needs no privileges; netsim doctor says more",
            )
        return LinkUnavailable(
            "this kernel has no tbf, which shapes the link",
            hint="sudo modprobe sch_tbf, or use --link bucket",
            remedy="sudo modprobe sch_tbf",
        )

    def _check_configuration(self) -> None:
        """Read every bucket back: an old iproute2 rounds what it was told, sometimes below one packet."""
        for rank in range(self.spec.workers):
            self._check_bucket(_only(self._qdiscs(rank), "eth0"), self.shapes.up[rank])
        outer = self._qdiscs(None)
        for rank in range(self.spec.workers):
            self._check_bucket(_only(outer, f"v{rank}"), self.shapes.down[rank])

    def _check_bucket(self, qdisc: dict[str, Any], asked: Shape) -> None:
        rate, burst = int(qdisc["options"]["rate"]) * 8, int(qdisc["options"]["burst"])
        if abs(rate - asked.rate_bps) > max(8, asked.rate_bps * 1e-3) or burst < SEGMENT_WIRE:
            raise LinkUnavailable(
                f"tc on {qdisc['dev']} was told {asked.rate_bps} bit/s, burst {asked.burst} B"
                f" and made it {rate} bit/s, {burst} B",
                hint="use --link bucket",
            )
        self.credit_bytes = max(self.credit_bytes, burst)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._driver is not None:
            self._driver.stop()
        for pipe in self._pipes.values():
            os.close(pipe)
        self._pipes.clear()
        if self._forwarding is not None:
            self._forwarding.close()
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
    ) -> Process:
        names: list[tuple[str, str]] = []
        if named and rank is not None and os.path.exists(HOSTS):
            everyone = [*self.endpoints[rank:], *self.endpoints[:rank]]
            names = [(endpoint.address, host_name(endpoint.rank)) for endpoint in everyone]
        return self._spawn(argv, rank, env, fds, output, share_namespaces=share_namespaces, names=names)

    def _spawn(
        self,
        argv: Sequence[str],
        rank: int | None,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        output: tuple[int, int] = (2, 2),
        *,
        share_namespaces: bool = False,
        names: Sequence[tuple[str, str]] = (),
        vital: str | None = None,
    ) -> Process:
        """As :meth:`spawn`. A process that is called ``vital`` must not fail as long as the link shall be."""
        channel = self._connected()
        with open(os.devnull, "rb") as null:
            answer = channel.ask(
                "spawn",
                fds=[null.fileno(), *output, *fds],
                argv=list(argv),
                rank=self._places[rank],
                env={**os.environ, **(env or {})},
                cwd=os.getcwd(),
                share_namespaces=share_namespaces,
                names=list(names),
                vital=vital,
            )
        _log.debug("started process %s in the namespace of %s: %s", answer["pid"], _place(rank), _short(argv))
        return RemoteProcess(channel, int(answer["pid"]))

    def counters(self) -> list[Counters]:
        if self._driver is not None and self._driver.failure is not None:
            raise LinkUnavailable(
                f"tc no longer changes the link: {self._driver.failure}", hint="run it again"
            )
        outer = {qdisc["dev"]: qdisc for qdisc in self._qdiscs(None)}
        ranks = range(self.spec.workers)
        gone = [0 for _ in ranks]
        if self._forwarding is not None:
            carried = self._forwarding.counted()
            gone = [carried.lost[rank] + carried.overrun[rank] for rank in ranks]
        return [
            self._rank_counters(rank, outer[f"v{rank}"], _only(self._qdiscs(rank), "eth0"), gone[rank])
            for rank in ranks
        ]

    def _rank_counters(self, rank: int, outer: dict[str, Any], inner: dict[str, Any], gone: int) -> Counters:
        return Counters(
            tx_bytes=int(inner["bytes"]),
            rx_bytes=int(outer["bytes"]),
            drops=int(inner["drops"]) + int(outer["drops"]) + gone,
            retransmits=tcp_retransmits(self._ask("read", path="/proc/net/snmp", rank=rank)["text"]),
        )

    def carried(self) -> Carried:
        """What the forwarder of a link that is delayed by tun counted so far."""
        if self._forwarding is None:
            raise RuntimeError("no forwarder carries this link's packets")
        return self._forwarding.counted()

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
        if self._forwarding is not None:
            self._forwarding.counted(bare=not on)
        if self.delay_by != "netem":
            return
        for step in netem(self.spec if on else replace(self.spec, delay_s=0.0, jitter_s=0.0, loss=0.0)):
            done = self._ask("run", argv=[find_tool("tc"), *step.argv[1:]], rank=step.rank)
            if done["code"] != 0:
                raise LinkUnavailable(f"tc cannot change the delay: {_first_line(done['err'])}")

    def _qdiscs(self, rank: int | None) -> list[dict[str, Any]]:
        done = self._ask("run", argv=[find_tool("tc"), "-s", "-j", "qdisc", "show"], rank=rank)
        if done["code"] != 0:
            raise LinkUnavailable(f"tc cannot show its counters: {_first_line(done['err'])}")
        found: list[dict[str, Any]] = json.loads(done["out"])
        return found

    def _connected(self) -> Channel:
        if self._channel is None:
            raise RuntimeError("the link is used outside its with block")
        return self._channel

    def _ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """``rank`` among the arguments is this link's; the helper counts the namespaces of all its links."""
        if request == "run":
            words = [os.path.basename(arguments["argv"][0] or ""), *arguments["argv"][1:]]
            if "text" in arguments:
                _log_commands(words[0], arguments["text"], arguments["rank"])
            else:
                _log_commands(words[0], " ".join(words[1:]), arguments["rank"])
        if "rank" in arguments:
            arguments["rank"] = self._places[arguments["rank"]]
        return self._connected().ask(request, **arguments)


def _place(rank: int | None) -> str:
    return "the bridge" if rank is None else f"rank {rank}"


def _log_commands(tool: str, lines: str, rank: int | None) -> None:
    for line in lines.splitlines():
        _log.debug("in the namespace of %s: %s %s", _place(rank), tool, line)


def _short(argv: Sequence[str]) -> str:
    text = " ".join(map(str, argv))
    return text if len(text) <= 160 else text[:160] + "..."


def _only(qdiscs: list[dict[str, Any]], device: str) -> dict[str, Any]:
    return next(qdisc for qdisc in qdiscs if qdisc["dev"] == device and qdisc.get("root"))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "no message"


def find_tool(name: str) -> str | None:
    """``ip`` and ``tc`` live in /sbin, which an ordinary user's PATH often lacks."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def _batches(steps: list[Step]) -> Iterator[tuple[int | None, list[Step]]]:
    """Runs of consecutive steps with the same tool and namespace: one process each instead of one per step."""
    batch: list[Step] = []
    for step in steps:
        if batch and (step.rank, step.argv[0]) != (batch[0].rank, batch[0].argv[0]):
            yield batch[0].rank, batch
            batch = []
        batch.append(step)
    if batch:
        yield batch[0].rank, batch


@contextmanager
def usable() -> Iterator[None]:
    """Raise what making the smallest real link raises; the only honest test of whether tc works here."""
    with TcLink(LinkSpec(workers=1, rate_bps=10**9)):
        yield
