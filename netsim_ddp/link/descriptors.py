"""How many files a process may have open, and whether that is enough for the ranks of a link."""

from __future__ import annotations

import resource

from netsim_ddp.errors import EnvironmentFault

OWN, PER_RANK = 40, 6
"""Of a command, its fork server or a rank: what it needs for itself, and for each rank beside it: a connection of the
process group, a channel, a namespace, recorded gradients, a pipe to ``tc``, and one to spare."""

USUAL = 1024
"""The soft limit of most systems, which no program minds."""


def enough_descriptors(workers: int) -> None:
    """Raise this process's limit, which its children inherit, where it is lower than what is usual or than what
    ``workers`` ranks need.

    Raises:
        EnvironmentFault: the hard limit does not allow it.
    """
    needed = OWN + PER_RANK * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(needed, USUAL)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise EnvironmentFault(
            f"this process may have {hard} files open (ulimit -Hn), and {workers} workers need {needed}",
            hint=f"have the limit raised to {needed}, with ulimit -n, LimitNOFILE= or docker run --ulimit nofile="
            f"{needed}; or use fewer --workers",
        )
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
