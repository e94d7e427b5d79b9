"""A launch's last lines: how each rank ended, what it sent, and where its steps went if they were recorded."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from netsim_ddp.report.recordings import ms, no_exposed, unseen
from netsim_ddp.report.tables import Table
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.launch import Launch, LaunchRank, RecordedLaunch
from netsim_ddp.results.recorded_steps import PART_NAMES, PARTS
from netsim_ddp.units import counted, format_bytes, format_duration, format_rate

_MOST_BUCKETS = 8


def render_launch(launch: Launch, console: Console) -> None:
    """Print ``launch`` to ``console``."""
    headers = ("rank", "ended", "wall", "sent", "received", "sent/s", "received/s")
    rows = [
        (
            str(rank.rank),
            _ending(rank),
            format_duration(rank.wall_s),
            format_bytes(rank.tx_bytes),
            format_bytes(rank.rx_bytes),
            format_rate(rank.tx_bps),
            format_rate(rank.rx_bps),
        )
        for rank in launch.ranks
    ]
    print_table(console, [Table(headers, rows, left=(1,))], header_style="dim")
    text = f"{format_duration(launch.wall_s)} on {counted(launch.workers, 'link')} of {launch.link.shape}"
    if launch.link.delay_by is not None:
        text += f" by {launch.link.how}"
    if launch.link.measured_bps is not None:
        text += f" (probed: {format_rate(launch.link.measured_bps)} goodput)"
    text += f", {counted(launch.link.drops, 'drop')}, {counted(launch.link.retransmits, 'retransmit')}"
    console.print(Text(text), soft_wrap=True)
    if launch.recorded is not None:
        _render_recorded(launch.recorded, console)


def _render_recorded(recorded: RecordedLaunch, console: Console) -> None:
    print_line(console, "")
    exchanged = recorded.world_size > 1 and recorded.source != "plain"
    names = ("step", *PARTS)
    headers = ("rank", *(PART_NAMES.get(name, name).replace(" ", "\n") for name in names))
    rows = [(str(rank.rank), *(ms(getattr(rank, f"{name}_s")) for name in names)) for rank in recorded.ranks]
    print_table(console, [Table(headers, rows)], header_style="dim")
    said = [f"ms, medians of {counted(recorded.steps, 'recorded step')}"]
    if exchanged:
        said[0] += "; wait: for the slowest rank"
        said += [*_by_bucket(recorded), no_exposed(recorded.without_exchange_s, recorded.step_s)]
        if len(recorded.ranks) < recorded.world_size:
            said.append(unseen(len(recorded.ranks), recorded.world_size))
    for sentence in said:
        print_line(console, sentence, indent="  ")


def _by_bucket(recorded: RecordedLaunch) -> list[str]:
    known = [
        (number, each.exposed_s) for number, each in enumerate(recorded.buckets) if each.exposed_s is not None
    ]
    if not known:
        return [
            "Of which buckets the exposed communication was is not known: DDP says when its own exchanges are through "
            "from torch 2.14 on."
        ]
    exposed = sorted(((value, number) for number, value in known if value > 0), reverse=True)
    shown = ", ".join(f"{ms(value)} ms of bucket {number}" for value, number in exposed[:_MOST_BUCKETS])
    more = f" and {len(exposed) - _MOST_BUCKETS} more" if len(exposed) > _MOST_BUCKETS else ""
    return [
        f"Exposed communication of {len(exposed)} of {counted(len(recorded.buckets), 'bucket')}: {shown}{more}."
        if exposed
        else "No bucket had exposed communication."
    ]


def _ending(rank: LaunchRank) -> str:
    ended = f"exit {rank.exit_code}" if rank.exit_code is not None else f"signal {rank.signal}"
    return ended + (", told to" if rank.ended_here else "")
