"""The token bucket's clock for many ranks that all do alike: one of them stands for all.

Where every rank has the same link, calls at the same moment and sends as much as the others, what one rank does at a
moment all do: the message that it receives then is as large as the one that it sends, and comes as late. So one rank's
messages are enough, and a collective among 1,024 ranks costs a 1,024th of what
:class:`~netsim_ddp.link.bucket.clock.LinkClock` does for it; both give the same times.
"""

from __future__ import annotations

from netsim_ddp.link.bucket.clock import Span, Way
from netsim_ddp.link.bucket.rates import ConstantRate
from netsim_ddp.link.bucket.schedule import Operation, folded
from netsim_ddp.link.bucket.tcp import ACK_BYTES, Sender, TcpSettings
from netsim_ddp.link.spec import LinkSpec


class FoldedClock:
    """One rank's link in time; feed it operations in the order in which they become ready.

    Of a link with slow ranks the slowest one stands for all, which every collective waits for. With jitter each message
    takes what the latest of ``workers`` messages takes in the mean.

    Args:
        spec: a link whose rates do not change and that loses nothing.
        tcp: the hosts' settings; this host's by default.
    """

    def __init__(self, spec: LinkSpec, *, tcp: TcpSettings | None = None) -> None:
        self.spec, self._ranks = spec, spec.workers
        ranks = range(spec.workers)
        self._up, self._down = min(map(spec.up, ranks)), min(map(spec.down, ranks))
        self._delay_s = spec.delay_s + spec.jitter_s * (spec.workers - 1) / (spec.workers + 1)
        self._tcp = (tcp or TcpSettings.of_host()) if spec.windows else None
        self._sends: list[Span] = []
        self._receives: list[Span] = []
        self._senders: dict[int, list[float]] = {}
        """What TCP keeps of the connection to each other rank."""
        self._quiet: dict[int, list[float]] = {}
        """What it kept when the connection last had nothing to send."""

    def complete(self, op: Operation, start: float) -> float:
        """When ``op``, which all ranks call at ``start``, is done (seconds of the caller's clock).

        Args:
            op: an all-reduce, an all-gather, or an all-to-all whose ``splits`` have this rank's row alone, the bytes to
                each rank with 0 for itself.
        """
        sends, receives = _after(self._sends, start), _after(self._receives, start)
        senders: dict[int, Sender] = {}
        done = 0.0
        for phase in folded(op, self._ranks):
            issue = done
            received: list[float] = []
            for number, messages in enumerate(phase.rounds):
                if number >= phase.window:
                    issue = max(issue, received[number - phase.window])
                got = 0.0
                for message in messages:
                    way = Way(
                        sends, receives, ConstantRate(self._up), ConstantRate(self._down), self._delay_s
                    )
                    ready = issue + self._delay_s
                    if self._tcp is None:
                        _, arrived = way.whole(ready, message.wire * 8)
                    else:
                        if message.dst not in senders:
                            senders[message.dst] = self._sender(message.dst, start)
                        _, _, arrived = senders[message.dst].send(ready, message.wire, way.piece)
                    got = max(got, arrived)
                    done = max(done, arrived)
                received.append(got)
        for peer, sender in senders.items():
            state = sender.state(start)
            if state[Sender.LAST] >= self._kept(peer)[Sender.LAST]:
                self._senders[peer] = state
        self._sends = [(begin + start, end + start) for begin, end in sends]
        self._receives = [(begin + start, end + start) for begin, end in receives]
        return start + done

    def _kept(self, peer: int) -> list[float]:
        return self._senders.get(peer, [0.0] * Sender.FLOATS)

    def _sender(self, peer: int, start: float) -> Sender:
        """TCP of the connection to ``peer``. Exchanges that are under way together take turns on it, and each finds the
        window that was there before both, as :class:`~netsim_ddp.link.bucket.clock.LinkClock` has it."""
        assert self._tcp is not None
        state = self._kept(peer)
        if state[Sender.LAST] <= start:
            self._quiet[peer] = state
        else:
            state = self._quiet.get(peer, [0.0] * Sender.FLOATS)
        return Sender(
            self._tcp,
            state,
            start,
            back_s=self.spec.delay_s,
            trip_s=2 * self.spec.delay_s,
            ack_s=ACK_BYTES * 8 / min(self._up, self._down),
        )


def _after(busy: list[Span], start: float) -> list[Span]:
    """The spans that end after ``start``, relative to it."""
    return [(begin - start, end - start) for begin, end in busy if end > start]
