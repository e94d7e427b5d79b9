"""The flags that describe a link, for every command that makes one. Values stay text: the scenario checks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.errors import UsageError

if TYPE_CHECKING:
    from netsim_ddp.link.spec import LinkSpec

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
Delay = Annotated[
    str | None,
    typer.Option(
        "--delay", metavar="TIME", help="One way between two ranks, half a round trip: 20ms. [none]"
    ),
]
Jitter = Annotated[
    str | None,
    typer.Option("--jitter", metavar="TIME", help="How far each packet's delay is from it: 2ms. [none]"),
]
DelayBy = Annotated[
    str | None,
    typer.Option(
        "--delay-by",
        metavar="HOW",
        help="Who delays and loses a tc link's packets: netem (kernel), tun (user space), auto: netem where it is. "
        "[auto]",
    ),
]
Tcp = Annotated[
    str | None,
    typer.Option(
        "--tcp",
        metavar="MODEL",
        help="What a message takes on a bucket link with a delay: linux (TCP's window), ideal (bytes / rate + delay). "
        "[linux]",
    ),
]
Reorder = Annotated[
    bool | None, typer.Option("--reorder", help="Let packets overtake each other under --jitter; needs tc.")
]
Loss = Annotated[
    str | None, typer.Option("--loss", metavar="SHARE", help="Packets that vanish: 0.1%; needs tc. [none]")
]
Queue = Annotated[
    str | None,
    typer.Option("--queue", metavar="TIME", help="Longest wait in a full queue: 100ms; needs tc. [no drops]"),
]
Congestion = Annotated[
    str | None,
    typer.Option("--congestion", metavar="NAME", help="TCP's control: cubic, bbr, reno; needs tc. [cubic]"),
]
Timeline = Annotated[
    str | None,
    typer.Option(
        "--timeline", metavar="FILE", help="Rates over time, in YAML: - {at: 10s, bandwidth: 20mbps}. [none]"
    ),
]
Trace = Annotated[
    str | None,
    typer.Option("--trace", metavar="FILE", help="A mahimahi trace, or UP:DOWN for two directions. [none]"),
]
Peak = Annotated[
    str | None,
    typer.Option(
        "--peak", metavar="RATE", help="A cloud's token bucket: this rate while there is credit. [none]"
    ),
]
Credit = Annotated[
    str | None,
    typer.Option(
        "--credit", metavar="SIZE", help="Bytes beyond --bandwidth before the peak is over: 4GB. [none]"
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--link-profile",
        metavar="NAME|FILE",
        help="A link with a name (netsim scenarios links) or in a file; other flags override it. [none]",
    ),
]
ShowCommands = Annotated[
    bool, typer.Option("--show-commands", help="Print the ip and tc lines that make the link, and stop.")
]


def show_commands(spec: LinkSpec, mechanism: str) -> None:
    """Print the lines that make a tc link.

    Raises:
        UsageError: the mechanism has none.
    """
    if mechanism not in ("auto", "tc"):
        raise UsageError(f"--link {mechanism} is not made by commands", hint="use --link tc")
    if spec.delay_by == "tun":
        raise UsageError(
            "--delay-by tun is not made by commands: a process of netsim's own carries the packets",
            hint="use --delay-by netem",
        )
    from netsim_ddp.link.tc.script import script

    for line in script(spec):
        typer.echo(line)
