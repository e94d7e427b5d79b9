"""How lines and tables get onto a terminal: wrapped or cut to its width, and without signs that it cannot show."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence

from rich import table as rich_table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from netsim_ddp.report.labels import encodable
from netsim_ddp.report.tables import Table
from netsim_ddp.results.labels import clean

WIDE = 120
"""Columns from which on a terminal has room for whole labels."""


def print_line(console: Console, text: str, style: str = "", *, indent: str = "") -> None:
    """Print ``text``, wrapped between words; further lines begin with ``indent``. Brackets are no markup."""
    wrapped = textwrap.fill(
        encodable(clean(text), console),
        console.width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(Text(wrapped, style=style))


def print_block(console: Console, lines: Collection[str], style: str = "", *, indent: str = "") -> None:
    """Print ``lines`` as :func:`print_line` does, below an empty one; nothing where there are none."""
    for text in ("", *lines) if lines else ():
        print_line(console, text, style, indent=indent)


def shortened(text: str, console: Console, most: int) -> str:
    """Returns ``text``, cut to ``most`` characters on a narrow terminal."""
    return text[: most - 2] + ".." if console.width < WIDE and len(text) > most else text


def print_table(
    console: Console,
    variants: Iterable[Table],
    *,
    gap: int = 2,
    header_style: str = "bold",
    bold: Sequence[bool] = (),
) -> None:
    """Print the first of ``variants`` that fits the console, or the last, of which there is one, with its cells cut.

    Args:
        gap: spaces between two columns.
        bold: for every row whether it stands out; empty: none does.
    """
    for shown in variants:
        if _width(shown, gap, console) <= console.width:
            break
    table = rich_table.Table(
        box=None, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False, header_style=header_style
    )
    for number, header in enumerate(shown.headers):
        table.add_column(
            Text(encodable(header, console)),
            justify="left" if number in shown.left else "right",
            no_wrap=True,
            vertical="bottom",
        )
    for number, row in enumerate(shown.rows):
        style = "bold" if number < len(bold) and bold[number] else ""
        table.add_row(*(Text(encodable(clean(text), console)) for text in row), style=style)
    console.print(table)


def _width(table: Table, gap: int, console: Console) -> int:
    """Returns the columns that ``table`` takes when nothing is cut."""
    headers = ([*header.splitlines(), ""] for header in table.headers)
    columns = zip(headers, *([[text] for text in row] for row in table.rows), strict=True)
    widest = (
        max(cell_len(encodable(clean(text), console)) for part in column for text in part)
        for column in columns
    )
    return sum(widest) + gap * (len(table.headers) - 1)
