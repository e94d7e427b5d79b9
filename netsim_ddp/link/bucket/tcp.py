"""Kernel TCP on an emulated line: when may which part of a message leave?

A connection's sender as Linux has it, reduced to what a line without loss can show: slow start from 10 segments with
HyStart's end of it, cubic's growth before its first loss (5% of the window per window), the window's halving for every
timeout of silence and its decay while the application sends less (RFC 2861, both), and a writer that waits until a
third of the socket's send buffer is free.
The receiver's window is not modelled: its autotuning kept ahead of every window in the measurements of
``reports/tcp.md``, where this model stands beside the kernel.

It goes per round trip, not per packet: what one window lets out is one piece, acknowledged in one train. Windows are
counted in segments of 1448 bytes; times are seconds of the caller's clock.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE

INITIAL_WINDOW = 10
LEAST_TIMEOUT_S = 0.2  # tcp_rto_min: a timeout is a round trip and this, where round trips hardly vary
GROWTH = 1 / 20  # bictcp_update before the first loss: cnt is 20 at most
TRAIN_ACK_S, TRAIN_SLACK_S, TRAIN_WINDOW = (
    2e-3,
    1e-3,
    16,
)  # hystart_ack_delta, hystart_ack_delay, hystart_low_window
LEAST_DELAY_S, MOST_DELAY_S = 4e-3, 16e-3  # HYSTART_DELAY_MIN, HYSTART_DELAY_MAX
ACK_BYTES = 66 / 2  # per segment: every second one is acknowledged
BUFFER_SHARE = 0.85  # of tcp_wmem that holds payload in the mean; the rest is the kernel's own (measured)
WRITER_WAKES = 2 / 3  # the buffer's fill below which the kernel wakes a writer: sk_stream_is_writeable
WMEM_BYTES = (4096, 16384, 4 * 1024**2)  # Linux's defaults, used where /proc does not say
PIECES = 12  # in flight that a sender remembers; more are joined


@dataclass(frozen=True)
class TcpSettings:
    """What a host's kernel is set to. ``wmem_bytes``: least, first and largest send buffer of a socket."""

    kernel: str
    wmem_bytes: tuple[int, int, int] = WMEM_BYTES
    slow_start_after_idle: bool = True

    @classmethod
    def of_host(cls, proc: Path = Path("/proc/sys/net/ipv4")) -> Self:
        """This host's; Linux's defaults for what it does not say."""
        kernel = f"{platform.system()} {platform.release()}"
        try:
            least, first, largest = map(int, (proc / "tcp_wmem").read_text().split())
            restarts = (proc / "tcp_slow_start_after_idle").read_text().strip() != "0"
        except (OSError, ValueError):
            return cls(kernel)
        return cls(kernel, (least, first, largest), restarts)

    @property
    def buffer_segments(self) -> float:
        """How many segments a socket's send buffer holds, unacknowledged ones included."""
        return max(2.0, self.wmem_bytes[2] * BUFFER_SHARE / SEGMENT_PAYLOAD)

    def most_bps(self, round_trip_s: float) -> float:
        """The line rate beyond which the send buffer is what limits one connection."""
        return math.inf if not round_trip_s else self.buffer_segments * SEGMENT_WIRE * 8 / round_trip_s


class Passage(NamedTuple):
    """A piece on the line: when its last byte has left, its first segment and its last byte have arrived."""

    sent: float
    first: float
    arrived: float


class _Piece(NamedTuple):
    """Segments in flight, and when the first and the last acknowledgement of them are back."""

    first_ack: float
    last_ack: float
    segments: float


Line = Callable[[float, float], Passage]
"""``line(ready, bits)``: puts a piece on the line when it is free."""


class Sender:
    """One direction of one connection.

    Args:
        state: what :meth:`state` returned, times included; zeros are a new connection.
        now: what is subtracted from its times: the caller's clock begins then.
        back_s: how long an acknowledgement is on its way.
        trip_s: the round trip of an empty line.
        ack_s: what the acknowledgement of one segment takes of the slower side of the way back.
    """

    FLOATS = 9 + 3 * PIECES
    LAST = 7
    """Which of them is when it last sent; 0 for a new connection."""

    def __init__(
        self,
        settings: TcpSettings,
        state: Sequence[float],
        now: float,
        *,
        back_s: float,
        trip_s: float,
        ack_s: float = 0.0,
    ) -> None:
        self._settings, self._back_s, self._trip_s, self._ack_s = settings, back_s, trip_s, ack_s
        self._buffer = settings.buffer_segments
        self._pieces: list[_Piece] = []
        if not state[0]:
            self._window, self._threshold, self._trip = float(INITIAL_WINDOW), math.inf, trip_s
            self._peak = self._used = 0.0
            self._limited = False
            self._since = self._last = -math.inf
            return
        self._window, threshold, self._trip, self._peak, self._used, limited, since, last, count = state[:9]
        self._threshold, self._limited = threshold or math.inf, bool(limited)
        self._since, self._last = since - now, last - now
        for cell in range(9, 9 + 3 * int(count), 3):
            self._pieces.append(_Piece(state[cell] - now, state[cell + 1] - now, state[cell + 2]))

    def state(self, now: float) -> list[float]:
        """``FLOATS`` numbers from which the same sender can be made again."""
        pieces = self._pieces
        while len(pieces) > PIECES:
            pieces[:2] = [
                _Piece(pieces[1].first_ack, pieces[1].last_ack, pieces[0].segments + pieces[1].segments)
            ]
        threshold = 0.0 if math.isinf(self._threshold) else self._threshold
        since = self._last if math.isinf(self._since) else self._since
        head = [self._window, threshold, self._trip, self._peak, self._used, float(self._limited)]
        cells = [
            *head,
            now + since,
            now + self._last,
            float(len(pieces)),
            *[value for a, b, n in pieces for value in (now + a, now + b, n)],
        ]
        return cells + [0.0] * (self.FLOATS - len(cells))

    def send(self, ready: float, wire: int, line: Line) -> Passage:
        """Bring ``wire`` bytes, headers counted, across ``line`` from ``ready`` on, behind what was sent before."""
        left = -(-wire // SEGMENT_WIRE)
        bits = wire * 8 / left
        now = max(ready, self._last)
        self._acknowledged_by(now)
        busy = bool(self._pieces)
        if not busy:
            self._after_silence(now)
        clocked, starved, crowded, peak, leaving, landed = 0.0, False, False, 0.0, math.inf, 0.0
        while True:
            flying = sum(piece.segments for piece in self._pieces)
            room = int(min(self._window, self._buffer) - flying)
            if room > 0:
                part = min(left, room)
                sent, first, arrived = line(now, part * bits)
                leaving, landed = min(leaving, first), max(landed, arrived)
                self._fly(now + clocked, part, first, arrived)
                peak = max(peak, flying + part)
                left -= part
                if not left:
                    break
            if self._window > self._buffer:
                crowded, clocked = True, 0.0
                now = max(now, self._until_writer_wakes())
            else:
                starved = self._limited = True
                self._peak = max(peak, flying)
                self._since, self._used = now, 0.0
                piece = self._pieces.pop(0)
                now, clocked = max(now, piece.first_ack), piece.last_ack - piece.first_ack
                self._grow(piece.segments, clocked)
        if not starved:
            self._validate(now, peak, busy=busy, crowded=crowded)
        return Passage(sent, leaving, landed)

    def _fly(self, released: float, segments: float, first: float, arrived: float) -> None:
        first_ack, last_ack = first + self._back_s, arrived + self._back_s
        # Where the way back is the slower one, acknowledgements set the clock.
        late = max(0.0, segments * self._ack_s - (last_ack - first_ack))
        self._pieces.append(_Piece(first_ack + late, last_ack + late, segments))
        self._last = max(self._last, min(released, last_ack + late - self._trip_s))
        self._trip = max(self._trip_s, last_ack + late - self._last)

    def _acknowledged_by(self, now: float) -> None:
        while self._pieces and self._pieces[0].first_ack <= now:
            first, last, segments = self._pieces.pop(0)
            if last > now:
                share = (now - first) / (last - first)
                self._grow(segments * share, now - first)
                self._pieces.insert(0, _Piece(now, last, segments * (1 - share)))
                return
            self._grow(segments, last - first)

    def _until_writer_wakes(self) -> float:
        """When the buffer has so much room that the kernel wakes its writer."""
        excess = sum(piece.segments for piece in self._pieces) - self._buffer * WRITER_WAKES
        now = self._pieces[0].first_ack
        while excess > 0:
            first, last, segments = self._pieces.pop(0)
            share = min(1.0, excess / segments)
            now = first + (last - first) * share
            self._grow(segments * share, now - first)
            if share < 1:
                self._pieces.insert(0, _Piece(now, last, segments * (1 - share)))
            excess -= segments
        return now

    def _grow(self, segments: float, train_s: float) -> None:
        """``segments`` were acknowledged, within ``train_s``."""
        if self._window < self._threshold:
            most = math.inf if self._limited else max(self._window, 2 * self._peak)
            if math.isinf(self._threshold) and self._window + segments >= TRAIN_WINDOW:
                self._hystart(segments, train_s)
            grown = min(segments, max(0.0, self._threshold - self._window))
            self._window = min(self._window + grown, most)
            segments -= grown
        if self._limited and segments > 0:
            self._window += segments * GROWTH

    def _hystart(self, segments: float, train_s: float) -> None:
        """End slow start when acknowledgements come for longer than half a round trip, or ever later."""
        enough = (self._trip_s + TRAIN_SLACK_S) / 2
        if train_s > enough and 2 * train_s / segments <= TRAIN_ACK_S:
            self._threshold = self._window + segments * enough / train_s
        elif self._trip - self._trip_s > min(max(self._trip_s / 8, LEAST_DELAY_S), MOST_DELAY_S):
            self._threshold = self._window + segments

    def _after_silence(self, now: float) -> None:
        """RFC 2861: the window halves for each timeout without data."""
        if math.isinf(self._last):
            self._since = now
            return
        timeouts = (now - self._last) / (self._trip + LEAST_TIMEOUT_S)
        if not self._settings.slow_start_after_idle or timeouts <= 1:
            return
        self._threshold = max(self._threshold, 0.75 * self._window)
        self._window = max(
            min(INITIAL_WINDOW, self._window), self._window // 2 ** min(60, math.ceil(timeouts) - 1)
        )
        self._since, self._used = now, 0.0

    def _validate(self, now: float, peak: float, *, busy: bool, crowded: bool) -> None:
        """A message that the window let out whole: what the window is worth is not known for long."""
        self._peak = max(self._peak, peak) if busy else peak
        self._limited = self._limited and busy
        if crowded or self._limited or (self._window < self._threshold and self._window < 2 * self._peak):
            self._since, self._used = now, 0.0
            return
        self._used = max(self._used, peak)
        if self._settings.slow_start_after_idle and now - self._since >= self._trip + LEAST_TIMEOUT_S:
            self._threshold = max(self._threshold, 0.75 * self._window)
            used = max(self._used, INITIAL_WINDOW)
            if used < self._window:
                self._window = (self._window + used) // 2
            self._since, self._used = now, 0.0
