"""The commands of a tc link as a person runs them: with named namespaces, as they stand."""

from __future__ import annotations

import shlex
from typing import Literal

from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.plan import Shapes, address, change, needs_delay_by, plan

BRIDGE = "netsim"


def namespace(rank: int | None) -> str:
    """``netsim`` for the bridge, ``netsim0`` for rank 0."""
    return BRIDGE if rank is None else f"{BRIDGE}{rank}"


def script(spec: LinkSpec) -> list[str]:
    """Lines for a root shell that make ``spec``'s link, play its timeline once, and say how to use and remove it.

    netsim itself makes the same link with the same words, in namespaces without names. Delay, jitter and loss are
    netem's here, since a forwarder is no command.
    """
    ranks = range(spec.workers)
    names = [namespace(None), *map(namespace, ranks)]
    lines = [f"ip netns add {name}" for name in names]
    delay_by: Literal["netem"] | None = "netem" if needs_delay_by(spec) else None
    for step in plan(spec, Shapes.of(spec), names[1:], spec.congestion or "cubic", delay_by):
        tool, *words = step.argv
        lines.append(shlex.join([tool, "-n", namespace(step.rank), *words]))
    last = 0.0
    for at, now in list(spec.stretches())[1:] if spec.varies else []:
        batches = change(now, [None, *ranks])
        lines.append(f"sleep {at - last:g}")
        last = at
        lines += [
            f"tc -n {namespace(rank)} {line}" for rank, text in batches.items() for line in text.splitlines()
        ]
    return [
        *lines,
        f"# use it:    ip netns exec {namespace(0)} ping {address(spec.workers - 1)}",
        f"# remove it: for n in {' '.join(names)}; do ip netns delete $n; done",
    ]
