"""A collection as Markdown, for a job's summary or a pull request: the answer first, the rest folded.

GitHub shows a step's summary up to 1 MiB; what would not fit is left out from the end, table by table, and said.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from netsim_ddp.report import facts, outcomes
from netsim_ddp.report.charts import all_plots
from netsim_ddp.report.collection import Block, Collection
from netsim_ddp.report.labels import basis
from netsim_ddp.report.tables import Table, block_table, measured_blocks
from netsim_ddp.results.labels import clean
from netsim_ddp.units import counted

# GitHub counts bytes; some are kept back for what else writes into the same summary.
LIMIT_BYTES = 900_000
_OPEN_LINES = 12
# Left out of a page that has no room to scroll; the CSV has them.
_DROPPED = frozenset({"payload", "hidden", "wait", "opt", "loss"})
_SPECIAL = re.compile(r"([\\`*_\[\]#|~]|^[-+>])")
# GitHub makes links of bare addresses and calls people by their names: a comment in between is invisible and stops it.
_LIVE = re.compile(r"(?i)(://|\bwww\.|@)")


def document(collection: Collection, *, limit: int = LIMIT_BYTES) -> str:
    """The whole text, in at most ``limit`` bytes of UTF-8."""
    parts = [_head(collection), *_details(collection)]
    kept: list[str] = []
    size = 0
    for number, part in enumerate(parts):
        size += len(part.encode()) + 1
        if size > limit - 200:
            kept.append(
                f"\n_{len(parts) - number} more parts did not fit; the HTML and CSV reports have them._\n"
            )
            break
        kept.append(part)
    return "\n".join(kept)


def text(value: str) -> str:
    """``value`` as text, whatever signs of Markdown or HTML stand in it."""
    return _dead(_SPECIAL.sub(r"\\\1", html.escape(clean(value), quote=False)))


def _dead(escaped: str) -> str:
    return _LIVE.sub(lambda found: f"{found[0][:1]}<!-- -->{found[0][1:]}", escaped)


def table(shown: Table) -> str:
    """Returns the table in Markdown, its first column aligned to the left."""
    lines = [_row(shown.headers), "|" + "|".join([":--", *["--:"] * (len(shown.headers) - 1)]) + "|"]
    return "\n".join([*lines, *(_row(row) for row in shown.rows)]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text(cell) or " " for cell in cells) + " |"


def _head(collection: Collection) -> str:
    lines = [f"## netsim: {text(collection.title)}\n"]
    for each in facts.answers(collection, all_plots(collection)):
        lines += [f"**{text(each.title)}**\n", table(each)]
    for source in collection.sources:
        if measured := facts.measured(source):
            several = f"{source.name}: " if len(collection.sources) > 1 else ""
            lines.append(f"{text(several + measured)}\n")
        said = facts.sentences(source, collection.blocks)
        if len(collection.sources) > 1:
            lines.append(f"**{text(source.name)}** ({text(source.result.status)})\n")
        items = "".join(f"- {text(line)}\n" for line in said if not facts.is_gap(line))
        gaps = "".join(f"- {text(line)}\n" for line in said if facts.is_gap(line))
        folded = len(said) > _OPEN_LINES
        lines.append(_folded(f"Place by place, {len(said)} sentences", items) if folded else items)
        lines += [gaps] if gaps else []
    return "\n".join(lines)


def _details(collection: Collection) -> list[str]:
    blocks = measured_blocks(collection.blocks)
    tables = [(block.heading, _block(block)) for block in blocks]
    trained = facts.trained(collection.blocks)
    parts = [f"**{text(each.title)}**\n\n{table(each)}" for each in trained]
    if trained:
        parts.append(f"{text(outcomes.NOTE)}\n")
    parts += [shown for _, shown in tables] if len(tables) == 1 else [_folded(*each) for each in tables]
    if (links := facts.links(collection)) is not None:
        parts.append(_folded(links.title, table(links)))
    if found := facts.warnings(collection):
        parts.append(
            _folded(
                f"{counted(len(found), 'warning')}",
                "".join(f"- {text(warning)}\n" for warning in found),
            )
        )
    for source in collection.sources:
        again = code("\n".join(facts.again(source)))
        parts.append(
            _folded(
                f"Environment, and how to measure it again: {source.name}",
                f"{table(facts.environment(source))}\n{again}\n",
            )
        )
    return parts


def code(value: str) -> str:
    """A fenced block; the fence is longer than any inside."""
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{value}\n{fence}"


def _folded(summary: str, inner: str) -> str:
    return f"<details><summary>{_dead(html.escape(clean(summary)))}</summary>\n\n{inner}\n</details>\n"


def _block(block: Block) -> str:
    words = text(f"{basis(block.cells)}; MB per rank and step.")
    return f"{table(block_table(block, _DROPPED, replayed=True))}\n{words}\n"
