"""Changes a tc link while it runs: one ``tc -batch`` per namespace waits for lines, which a thread writes in time."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from netsim_ddp.link.spec import LinkSpec

Lines = Mapping[int | None, str]
"""For each namespace, by its rank (None: the bridge's), the lines of a ``tc`` batch."""


class Driver:
    """Plays ``stretches`` on a link, from the first one's end on; the link starts with the first.

    Args:
        stretches: when each begins (seconds from :meth:`begin`, the first at 0), and the link from then on.
        period: after this long the first one comes again; None: the last one stays.
        change: returns what changes the link to a stretch.
        write: hands a batch to a namespace.
    """

    def __init__(
        self,
        stretches: Sequence[tuple[float, LinkSpec]],
        period: float | None,
        change: Callable[[LinkSpec], Lines],
        write: Callable[[int | None, str], None],
    ) -> None:
        self._stretches, self._period, self._lines, self._write = stretches, period, change, write
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self.failure: OSError | None = None

    def begin(self) -> None:
        self._change(self._lines(self._stretches[0][1]))
        self._began = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """No change comes after this."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _play(self) -> None:
        for at, now in itertools.islice(self._upcoming(), 1, None):
            lines = self._lines(now)  # made early: a late change is not the link that was asked for
            if self._over.wait(max(0.0, self._began + at - time.monotonic())):
                return
            try:
                self._change(lines)
            except OSError as error:  # whoever holds the link asks, and says so
                self.failure = error
                return

    def _upcoming(self) -> Iterator[tuple[float, LinkSpec]]:
        """Every stretch and when it begins, without end where the link has a period."""
        for round_ in itertools.count():
            yield from ((round_ * (self._period or 0) + at, now) for at, now in self._stretches)
            if self._period is None:
                return

    def _change(self, lines: Lines) -> None:
        for rank, text in lines.items():
            self._write(rank, text)
