"""The flags that describe a link, for every command that makes one. Values stay text: the scenario checks them."""

from __future__ import annotations

from typing import Annotated

import typer

Bandwidth = Annotated[
    str | None,
    typer.Option(
        "--bandwidth",
        metavar="RATE",
        help="Rate of every rank's link: 100mbps, 1gbps, or UP:DOWN for two directions, 100mbps:20mbps. [1gbps]",
    ),
]
SlowRank = Annotated[
    list[str] | None,
    typer.Option(
        "--slow-rank",
        metavar="RANK=RATE",
        help="A rank with a link of its own: 3=100mbps, 0=1gbps:10mbps; repeatable.",
    ),
]
Mechanism = Annotated[
    str | None,
    typer.Option(
        "--link",
        metavar="HOW",
        help="tc (namespaces), bucket (user space), none (unshaped), auto: tc where it works. [auto]",
    ),
]
