"""A launch's last lines: how each rank ended, and what it sent."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from netsim_ddp.report.tables import Table
from netsim_ddp.report.terminal.printing import print_table
from netsim_ddp.results.launch import Launch, LaunchRank
from netsim_ddp.units import format_bytes, format_duration, format_rate


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
    text = f"{format_duration(launch.wall_s)} on {launch.workers} links of {launch.link.shape}"
    if launch.link.delay_by is not None:
        text += f" by {launch.link.how}"
    if launch.link.measured_bps is not None:
        text += f" (probed: {format_rate(launch.link.measured_bps)} goodput)"
    text += f", {launch.link.drops} drops, {launch.link.retransmits} retransmits"
    console.print(Text(text), soft_wrap=True)


def _ending(rank: LaunchRank) -> str:
    ended = f"exit {rank.exit_code}" if rank.exit_code is not None else f"signal {rank.signal}"
    return ended + (", told to" if rank.ended_here else "")
