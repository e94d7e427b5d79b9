"""A report as one HTML file: no script, no network, light or dark as its reader has it, readable on a telephone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from netsim_ddp.report import facts, outcomes
from netsim_ddp.report.charts import Bars, Chart, Differences, Plot, Timeline, all_plots
from netsim_ddp.report.charts.recorded import timelines
from netsim_ddp.report.charts.style import DARK, LIGHT, Looks
from netsim_ddp.report.charts.svg import CSS, draw, hatches
from netsim_ddp.report.collection import Collection
from netsim_ddp.report.labels import count_of
from netsim_ddp.report.markup import Child, Markup, tag
from netsim_ddp.report.tables import Table, block_table, measured_blocks
from netsim_ddp.results.recorded_steps import seen_steps
from netsim_ddp.units import counted

# Nothing may be fetched, run or sent, whatever a hostile file got into the text.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
# Longer lists are folded.
_OPEN_LINES, _OPEN_BLOCKS = 12, 4

_STYLE = (
    f":root{{color-scheme:light dark;{LIGHT.variables()}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{DARK.variables()}}}}}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:1200px;padding:1rem;background:var(--ground);color:var(--ink);"
    "font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}"
    "h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}"
    "h3{font-size:1rem;margin:0 0 .25rem}p{margin:.5rem 0}"
    "a{color:var(--accent)}.dim{color:var(--muted)}.warn{color:var(--warn)}"
    ".verdict{background:var(--panel);border-left:4px solid var(--accent);padding:.5rem 1rem;margin:1rem 0}"
    ".verdict p{margin:.35rem 0}"
    ".plots{display:grid;gap:1.5rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));"
    "align-items:start}"
    "figure{margin:0;min-width:0;max-width:540px}figcaption{font-size:.9rem;margin:.25rem 0}"
    ".scroll{overflow-x:auto;max-width:100%}.scroll:focus-visible{outline:2px solid var(--accent)}"
    "table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}"
    "caption{text-align:left;overflow-wrap:anywhere;font-weight:600;padding:.25rem 0}"
    "th,td{padding:.2rem .5rem .2rem 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}"
    "th:first-child,td:first-child,.words th,.words td{text-align:left}"
    "th[scope=row]{white-space:normal;overflow-wrap:anywhere;min-width:10rem;max-width:15rem}"
    ".words td,.words th{white-space:normal;min-width:4.5rem}.words{width:100%}"
    "thead th{color:var(--muted);font-weight:600;vertical-align:bottom}"
    "details{margin:.5rem 0}summary{cursor:pointer;color:var(--accent)}"
    "pre{background:var(--panel);padding:.75rem;overflow-x:auto;font-size:.85rem;white-space:pre-wrap}"
    "ul{padding-left:1.2rem}"
    "@media print{details>*{display:block}}"
) + CSS  # fmt: skip


def page(collection: Collection) -> str:
    """The whole page."""
    plots = all_plots(collection)
    looks = Looks(collection.colours, [entry.colour for entry in collection.entries if entry.dense])
    body = (
        _header(collection),
        _verdict(collection, plots),
        figures(
            "What it costs in accuracy", [plot for plot in plots if isinstance(plot, Differences)], looks
        ),
        figures("Curves", [plot for plot in plots if isinstance(plot, Chart)], looks),
        figures("Where a step's time goes", [plot for plot in plots if isinstance(plot, Bars)], looks),
        _recorded(collection),
        _numbers(collection),
        _links(collection),
        _warnings(collection),
        tag(
            "section",
            tag("h2", "Environment"),
            (boxed(facts.environment(source), words=True) for source in collection.sources),
        ),
        tag(
            "section",
            tag("h2", "Measure it again"),
            (tag("pre", tag("code", line)) for source in collection.sources for line in facts.again(source)),
        ),
    )
    return document(collection.title, body)


def document(title: str, body: Iterable[str]) -> str:
    """A page called ``title`` around the sections of ``body``."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"netsim: {title}"),
        tag("style", Markup(_STYLE)),
    )
    patterns = tag("svg", hatches(), width="0", height="0", style="position:absolute", aria_hidden="true")
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', patterns, body)), lang='en')}\n"


def _header(collection: Collection) -> Markup:
    lines = []
    for source in collection.sources:
        result = source.result
        parts = [source.name, result.created_utc]
        if result.model_parameters:
            parts.append(f"{count_of(result.model_parameters)} parameters")
        parts.append(counted(len(result.cells), "cell"))
        if result.status != "complete":
            parts.append(f"status: {result.status}")
        lines.append(tag("p", " | ".join(parts), class_="dim" if result.status == "complete" else "warn"))
        if said := facts.measured(source):
            lines.append(tag("p", said))
    return tag("header", tag("h1", collection.title), lines)


def _verdict(collection: Collection, plots: Sequence[Plot]) -> Markup:
    said: list[Markup] = []
    missing: list[Markup] = []
    for source in collection.sources:
        lines = facts.sentences(source, collection.blocks)
        if lines and len(collection.sources) > 1:
            said.append(tag("h3", source.name))
        # A reader of a page of many links must not have to unfold what is missing.
        missing += [tag("p", line, class_="warn") for line in lines if facts.is_gap(line)]
        said += [tag("p", line) for line in lines if not facts.is_gap(line)]
    first = [boxed(each, words=True) for each in facts.answers(collection, plots)]
    if len(said) > _OPEN_LINES:
        said = [tag("details", tag("summary", f"Place by place, {len(said)} sentences"), said)]
    if not first and not said and not missing:
        first = [tag("p", "Nothing was measured.")]
    return tag("section", first, said, missing, class_="verdict", aria_label="Verdict")


def figures(title: str, plots: Sequence[Plot], looks: Looks) -> Markup:
    """A section of ``plots`` beside each other; nothing where there are none."""
    if not plots:
        return Markup("")
    return tag(
        "section", tag("h2", title), tag("div", (_figure(plot, looks) for plot in plots), class_="plots")
    )


def _figure(plot: Plot, looks: Looks) -> Markup:
    if isinstance(plot, Bars):
        return tag("figure", tag("figcaption", tag("h3", plot.title)), draw(plot, looks))
    if isinstance(plot, Timeline):
        below = tag("figcaption", (tag("p", note) for note in plot.notes))
        return tag("figure", tag("figcaption", tag("h3", plot.title)), draw(plot, looks), below)
    kind = plot.kind[:1].upper() + plot.kind[1:]
    caption = tag("figcaption", tag("h3", kind), tag("p", plot.title, class_="dim"))
    notes = tag("figcaption", (tag("p", note) for note in plot.notes)) if plot.notes else ""
    if isinstance(plot, Differences):
        return tag("figure", caption, draw(plot, looks), notes)
    rows = [
        (one.label, f"{point.x:.5g}", f"{point.y:.5g}", f"{point.low:.5g}", f"{point.high:.5g}")
        for one in plot.series
        for point in one.points
    ]
    rows += [
        (f"{one.label}, by formula", f"{x:.5g}", f"{y:.5g}", "", "")
        for one in plot.series
        for x, y in one.formula[1:]
    ]
    numbers = boxed(Table(("method", plot.x_label, plot.y_label, "low", "high"), rows, plot.title))
    folded = tag("details", tag("summary", "Numbers"), numbers)
    return tag("figure", caption, draw(plot, looks), notes, folded)


def _recorded(collection: Collection) -> Markup:
    """One step of each recording that was played, over time."""
    recordings = {each.key: each for source in collection.sources for each in source.recordings}
    plots = [
        replace(plot, key=f"{key}-{plot.key}", title=f"{recording.model}: {plot.title}")
        for key, recording in recordings.items()
        for plot in timelines(recording, seen_steps(recording))
    ]
    return figures("A step as it was recorded", plots, Looks([]))


def _numbers(collection: Collection) -> Markup:
    trained = facts.trained(collection.blocks)
    blocks = measured_blocks(collection.blocks)
    shown = trained + [block_table(block, frozenset(), replayed=True) for block in blocks]
    if not shown:
        return Markup("")
    tables = [boxed(each) for each in shown]
    inner: Child = tables
    if len(tables) > _OPEN_BLOCKS:
        inner = tag("details", tag("summary", f"{len(tables)} tables, one for each link"), tables)
    steps = "Times are ms per step of the slowest rank; phases add up to the step. MB per rank and step."
    words = [outcomes.NOTE] * bool(trained) + [steps] * bool(blocks)
    return tag("section", tag("h2", "Numbers"), (tag("p", line, class_="dim") for line in words), inner)


def _links(collection: Collection) -> Markup:
    found = facts.links(collection)
    if found is None:
        return Markup("")
    words = "What each link was asked for, what it was set to, and what a probe measured on it before the first step."
    return tag("section", tag("h2", "The link"), tag("p", words, class_="dim"), boxed(found))


def _warnings(collection: Collection) -> Markup:
    found = facts.warnings(collection)
    if not found:
        return Markup("")
    items = tag("ul", (tag("li", warning) for warning in found))
    folded = tag("details", tag("summary", f"{len(found)} warnings"), items)
    inner = folded if len(found) > _OPEN_LINES else items
    return tag("section", tag("h2", "Warnings"), inner, class_="warnings")


def boxed(shown: Table, *, words: bool = False) -> Markup:
    """A table in a box of its own that scrolls where the screen is narrower."""
    head = tag("thead", tag("tr", (tag("th", header, scope="col") for header in shown.headers)))
    body = tag(
        "tbody",
        (
            tag("tr", tag("th", row[0], scope="row"), (tag("td", text) for text in row[1:]))
            for row in shown.rows
        ),
    )
    table = tag("table", tag("caption", shown.title), head, body, class_="words" if words else None)
    return tag("div", table, class_="scroll", role="region", aria_label=shown.title, tabindex="0")
