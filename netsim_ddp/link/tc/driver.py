"""Changes a tc link while it runs: one ``tc -batch`` per namespace waits for lines, which a thread writes in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from netsim_ddp.link.spec import LinkSpec

Lines = Mapping[int | None, str]
"""For each namespace, by its rank (None: the bridge's), the lines of a ``tc`` batch."""


class Driver:
    """Plays ``stretches`` on a link, from the first one's end on; the link starts with the first.

    Args:
        stretches: when each begins (seconds from :meth:`begin`, the first at 0), and the link from then on.
        period: after this long the first one comes again; None: the last one stays.
        change: answers what changes the link to a stretch.
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
        lap = 0.0
        upcoming = list(self._stretches[1:])
        while upcoming:
            for at, now in upcoming:
                lines = self._lines(
                    now
                )  # made before its time: a late change is not the link that was asked for
                if self._over.wait(max(0.0, self._began + lap + at - time.monotonic())):
                    return
                try:
                    self._change(lines)
                except OSError as error:  # whoever holds the link asks, and says so
                    self.failure = error
                    return
            if self._period is None:
                return
            lap += self._period
            upcoming = list(self._stretches)

    def _change(self, lines: Lines) -> None:
        for rank, text in lines.items():
            self._write(rank, text)
