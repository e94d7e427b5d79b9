"""What stands beside the figures in every exporter: the sentences on top, the links, the environment, the warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from netsim_ddp.options import written
from netsim_ddp.report import outcomes
from netsim_ddp.report.assumptions import UNSHAPED, assumptions, played, queue_words, why_bucket
from netsim_ddp.report.charts.shapes import Chart, Plot, panels_of
from netsim_ddp.report.choices import choices
from netsim_ddp.report.collection import Block, Collection, Source
from netsim_ddp.report.costs import epoch_table
from netsim_ddp.report.labels import DASH
from netsim_ddp.report.limits import late_words
from netsim_ddp.report.tables import Table
from netsim_ddp.report.utilisation import NOTE, needs
from netsim_ddp.report.verdict import reason, verdict
from netsim_ddp.results.labels import clean
from netsim_ddp.results.record import CodeRecord, LinkRecord
from netsim_ddp.results.summary import RIVALS
from netsim_ddp.units import format_duration, format_rate

LINK_HEADERS = ("link", "asked", "configured", "measured", "ceiling", "drops", "retransmits", "and")


def answers(collection: Collection, plots: Sequence[Plot]) -> list[Table]:
    """Up to which bandwidth each method pays, then which one it needs to keep the processors busy."""
    files = [[entry.cell for entry in panel] for panel in panels_of(collection, without="bandwidth")]
    needed = [one for cells in files for one in needs(cells)]
    epochs = [table for source in collection.sources if (table := epoch_table(source.result))]
    return pays(plots) + epochs + [replace(one, title=f"{one.title}. {NOTE}") for one in needed]


def pays(plots: Sequence[Plot]) -> list[Table]:
    """Up to which bandwidth each method pays: what a sweep was made for, so it comes first."""
    places: dict[str, dict[str, dict[str, str]]] = {}
    for plot in plots:
        if isinstance(plot, Chart) and plot.ends:
            bounds = f"measured from {plot.x_ticks[0][1]} to {plot.x_ticks[-1][1]} Mbit/s"
            if any("(" in text for _, text in plot.ends):
                bounds += ", 95% intervals"
            rows = places.setdefault(f"{plot.title}, {bounds}", {})
            for label, text in plot.ends:
                rows.setdefault(label, {})[plot.y_label] = text
    rivals = [
        name
        for name in RIVALS.values()
        if any(f"speedup over {name}" in found for rows in places.values() for found in rows.values())
    ]
    return [
        Table(
            ("pays below", *(f"than {name}" for name in rivals)),
            [
                (label, *(found.get(f"speedup over {name}", DASH) for name in rivals))
                for label, found in rows.items()
            ],
            title,
        )
        for title, rows in places.items()
    ]


def sentences(source: Source, blocks: Sequence[Block]) -> list[str]:
    """Does it pay, against what, and what is missing, of one file."""
    if source.result.kind == "steps":
        return verdict(source.result)
    mine = [block for block in blocks if block.source is source]
    found = [
        f"{block.title}: {line}" if len(mine) > 1 else line
        for block in mine
        for line in outcomes.sentences(block)
    ]
    found += choices(source.result)
    for cell in source.result.cells:
        if cell.error or not any(repeat.epochs for repeat in cell.repeats):
            found.append(f"Missing: {clean(cell.id)}: {reason(cell) or 'not run'}.")
    return found


def measured(source: Source) -> str:
    """How the file's cells were measured, and what is assumed of them; empty where it has none."""
    found = assumptions(source.result.cells, source.result)
    if found[:1] == ["predicted"]:
        return f"{', '.join(['Predicted', *found[1:]])}."
    return f"Measured {', '.join(found)}." if found else ""


def is_gap(sentence: str) -> bool:
    """Whether a sentence of :func:`sentences` is about cells or runs that are not there."""
    return sentence.startswith(("Missing: ", "Partial: "))


def links(collection: Collection) -> Table | None:
    """Returns a row for every block's link, or None where there is none."""
    rows = [_link_row(block) for block in collection.blocks]
    return Table(LINK_HEADERS, rows, "Links") if rows else None


def _link_row(block: Block) -> tuple[str, ...]:
    """The block's link as asked for, configured and measured by the probe; over all its cells."""
    links = [cell.link for cell in block.cells]
    first = links[0]
    measured = [link.measured_bps for link in links if link.measured_bps is not None]
    ends = (min(measured), max(measured)) if measured else (None,)
    counted = first.mechanism in ("tc", "host")
    return (
        block.title,
        clean(first.shape) if first.shape else _rate(first.requested_bps),
        _rate(first.configured_bps),
        " to ".join(dict.fromkeys(map(_rate, ends))),
        _rate(first.ceiling_bps),
        str(sum(link.drops for link in links)) if counted else DASH,
        str(sum(link.retransmits for link in links)) if counted else DASH,
        ", ".join(_more(links, why_bucket(block.cells[0], block.source.result), late_words(block.cells))),
    )


def _more(links: Sequence[LinkRecord], why: str, late: str) -> list[str]:
    first = links[0]
    how = f"not shaped: {UNSHAPED[first.mechanism]}" if first.mechanism in UNSHAPED else first.how
    if first.mechanism == "bucket":
        how = f"bucket{why}: bytes are charged, not measured"
    more = (
        late,
        f"delay {format_duration(first.delay_s)}" if first.delay_s else "",
        *queue_words(first),
        "varies" if first.varies else "",
        "HOST-LIMITED: ratios with these cells are bounds"
        if any(link.host_limited for link in links)
        else "",
    )
    return [how, *filter(None, more)]


def _rate(rate: float | None) -> str:
    return DASH if rate is None else format_rate(rate)


def environment(source: Source) -> Table:
    """Returns what the file's cells ran on, and when: pairs of words."""
    result = source.result
    pairs = [
        ("made", clean(result.created_utc)),
        ("by", clean(f"{result.tool.name} {result.tool.version}")),
        ("status", result.status),
        *((f"code of {clean(each.name)}", _code(each)) for each in result.code),
    ]
    if how := played(result.cells):
        pairs.append(("local work measured", how))
    pairs += [(clean(str(key)), clean(written(value))) for key, value in result.environment.items()]
    return Table(("what", "value"), pairs, source.name)


def _code(record: CodeRecord) -> str:
    """``0.2.0, commit 1a2b3c4d5e6f and changes that are not committed``."""
    parts = [record.version] if record.version else []
    if record.commit:
        changes = " and changes that are not committed" if record.dirty else ""
        parts.append(f"commit {record.commit[:12]}{changes}")
    return clean(", ".join(parts) or "no version, and no commit")


def trained(blocks: Sequence[Block]) -> list[Table]:
    """Returns a table for each of ``blocks`` that has trainings."""
    return [
        Table(outcomes.HEADERS, rows, block.heading) for block in blocks if (rows := outcomes.rows(block))
    ]


def warnings(collection: Collection) -> list[str]:
    """Every file's warnings, each once."""
    several = len(collection.sources) > 1
    found = [
        (f"{clean(source.name)}: " if several else "") + clean(warning)
        for source in collection.sources
        for warning in source.result.warnings
    ]
    return list(dict.fromkeys(found))


def again(source: Source) -> list[str]:
    """What to type to get it again: the command as it was given, and from this file."""
    result = source.result
    repeat = "netsim train --config" if result.kind == "training" else "netsim run --config"
    if any(cell.axes for cell in result.cells):
        repeat = "netsim sweep"
    return [line for line in (clean(result.command), f"{repeat} {clean(source.name)}") if line]
