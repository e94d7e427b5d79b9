"""Advice on a terminal."""

from __future__ import annotations

from functools import partial

from rich.console import Console
from rich.text import Text

from netsim_ddp.report.advice import facts, headline, note, table
from netsim_ddp.report.labels import encodable
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.advice import Advice
from netsim_ddp.results.labels import clean

_DROPS = ("sent", "accuracy", "predicted", "measured")


def render_advice(advice: Advice, console: Console) -> None:
    """Print the recommendation, what is expected of it, the other methods, what is not known, and what to paste."""
    line = partial(print_line, console)
    line(f"{clean(advice.model)}, {advice.workers} workers, {clean(advice.link)}")
    line("")
    line(headline(advice), "bold")
    line("")
    shown = facts(advice)
    width = max(len(name) for name, _ in shown)
    for name, text in shown:
        line(f"{name:<{width}}  {text}", indent=" " * (width + 2))
    line("")
    print_table(
        console,
        (table(advice, dropped=frozenset(_DROPS[:count])) for count in range(len(_DROPS) + 1)),
        bold=[True],
    )
    if said := note(advice):
        line(said)
    if advice.missing:
        line("")
        line("What is not known:")
        for each in advice.missing:
            line(f"- {each}", indent="  ")
    line("")
    line("In your own training (the model, wrapped, is ddp):")
    for each in advice.snippet.splitlines():
        console.print(Text(f"    {encodable(each, console)}"), soft_wrap=True)
    if advice.commands:
        line("")
        line("To find out more:")
        for each in advice.commands:
            console.print(Text(f"    {encodable(clean(each), console)}"), soft_wrap=True)
