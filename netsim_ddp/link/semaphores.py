"""Locks that processes share. The C library keeps their semaphores in /dev/shm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from netsim_ddp.errors import EnvironmentFault

FOLDER = "/dev/shm"
REMEDY = "docker run --shm-size 1g, or as root: mount -t tmpfs tmpfs /dev/shm; where it is full, remove what lies there"
_T = TypeVar("_T")


def shared(make: Callable[[], _T]) -> _T:
    """What ``make`` makes of semaphores.

    Raises:
        EnvironmentFault: this system has none to give.
    """
    try:
        return make()
    except (OSError, ImportError) as error:  # the second where Python found none when it was built
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise EnvironmentFault(
            f"no semaphore for the workers can be made in {FOLDER}: {reason}", hint=REMEDY
        ) from error
