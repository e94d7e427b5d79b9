"""What a virtual machine's host gives to others of the processors that this machine believes it has ("steal")."""

from __future__ import annotations

NOTICEABLE = 0.05
"""Beyond this share, measured times are longer by more than a verdict's own floor."""


class StolenTime:
    """The share of all processors' time that others had since this object was made, while work here waited for it."""

    def __init__(self) -> None:
        self._begin = _ticks()

    @property
    def share(self) -> float | None:
        """0 to 1; None where the system does not tell."""
        now = _ticks()
        if self._begin is None or now is None:
            return None
        return (now[1] - self._begin[1]) / max(now[0] - self._begin[0], 1)


def _ticks() -> tuple[int, int] | None:
    """Of all processors since the start: all time, and the stolen part of it."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            every = [
                int(word) for word in file.readline().split()[1:9]
            ]  # what follows is part of the first two
        return sum(every), every[7]
    except (OSError, ValueError, IndexError):
        return None
