"""A comparison as text: on a terminal within 80 columns, and as Markdown for a pull request.

Names come from files that anybody may have written, so they are cleaned for the one and escaped for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.text import Text

from netsim_ddp.report.terminal.printing import print_block, print_line
from netsim_ddp.results.comparison import Comparison, FigureRow, Pair, ScoreRow, TimeRow, plain
from netsim_ddp.results.labels import clean
from netsim_ddp.results.verdicts import of_family
from netsim_ddp.units import counted, format_duration

_STYLES = {"slower": "red", "worse": "red", "faster": "green", "better": "green", "inconclusive": "yellow"}
_ORDER = ("slower", "worse", "inconclusive", "faster", "better", "no change")
_SHOWN = 20  # lines of one kind in a summary; the rest is counted


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Print ``comparison``: a line per cell, then why some are not decided, then what fails."""

    line = partial(print_line, console)
    for note in comparison.notes:  # before any verdict, which they qualify
        line(f"warning: {note}", "yellow")
    line(headline(comparison), "bold")
    line(f"base {comparison.base}", "dim")
    line(f"new  {comparison.new}", "dim")
    timed = [(pair, row) for pair in comparison.pairs for row in pair.times]
    if timed:
        width = _name_width([_row_name(pair, row) for pair, row in timed], console.width)
        line("")
        header = f"{'':{width}} {'base':>8} {'new':>8}  {'new / base':<17} {'Holm p':>6}  verdict"
        console.print(Text(header, style="dim"))
        for pair, row in timed:
            name = _row_name(pair, row)
            if len(name) > width:  # cut, two names could read alike
                line(name)
                name = ""
            shown = Text(
                f"{name:{width}} {format_duration(row.base_s):>8} {format_duration(row.new_s):>8}"
                f"  {_ratio(row):<17} {_p(row):>6}  "
            )
            shown.append(row.verdict.upper() if row.fails else row.verdict, _STYLES.get(row.verdict, ""))
            console.print(shown, soft_wrap=True)
    for pair in comparison.pairs:
        for score in pair.scores:
            line(f"{clean(pair.name)}: {_score(score)}", _STYLES.get(score.verdict, ""), indent="  ")
    print_block(console, _undecided(timed), indent="  ")
    if figures := figures_line(comparison):
        line("")
        line(figures)
        for pair, figure in _changed(comparison):
            line(f"{clean(pair.name)}: {_figure(figure)}", "red", indent="  ")
    for sentence in _unmatched(comparison):
        line(sentence, "yellow", indent="  ")
    print_block(console, [f"FAILS: {failure}" for failure in comparison.failures], "bold red", indent="  ")


def headline(comparison: Comparison) -> str:
    """``6 cells compared: 1 slower, 5 no change (6 comparisons, Holm at 5%)``."""
    verdicts = [row.verdict for pair in comparison.pairs for row in pair.times]
    verdicts += [row.verdict for pair in comparison.pairs for row in pair.scores]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in _ORDER if verdict in verdicts]
    count = len(comparison.pairs)
    found = f"{counted(count, 'cell')} compared"
    if not counts:
        return found
    return f"{found}: {', '.join(counts)} ({of_family(len(verdicts), comparison.alpha)})"


def _undecided(timed: Sequence[tuple[Pair, TimeRow]]) -> list[str]:
    return [
        f"{_row_name(pair, row)}: {undecided(row)}" for pair, row in timed if row.verdict == "inconclusive"
    ]


def undecided(row: TimeRow) -> str:
    """Why a time is not decided, what these runs would have shown, and what would decide."""
    parts = [row.why]
    if row.detectable is not None:
        parts.append(f"a change of {row.detectable:.0%} or more would have shown")
    if row.repeats is not None:
        parts.append(f"about {row.repeats} runs of each side would decide")
    elif row.detectable is not None:
        parts.append("no reasonable number of runs would decide")
    return "; ".join(parts) + "."


def figures_line(comparison: Comparison) -> str:
    """What does not vary, counted: ``24 figures of bytes, entries and bits: all the same``."""
    rows = [row for pair in comparison.pairs for row in pair.figures]
    if not rows:
        return ""
    changed = sum(row.changed for row in rows)
    kinds = ", ".join(dict.fromkeys(clean(row.figure).partition(",")[0] for row in rows))
    total = f"{counted(len(rows), 'figure')} that must not vary ({kinds}; bytes are per step, of all ranks)"
    return f"{total}: {changed} changed." if changed else f"{total}: none changed."


def cell_lines(pair: Pair) -> list[str]:
    """What was found of one cell, a line for each figure."""
    return [
        *(
            f"{row.figure}: {format_duration(row.base_s)} -> {format_duration(row.new_s)}, {_ratio(row)}: {row.verdict}"
            for row in pair.times
        ),
        *map(_score, pair.scores),
        *map(_figure, pair.figures),
    ]


def markdown(comparison: Comparison) -> str:
    """The comparison for a pull request or a job summary; what is long is folded."""
    lines = [f"### netsim compare: {'fails' if comparison.failures else 'ok'}", ""]
    for note in comparison.notes:  # before any verdict, which they qualify
        lines += [f"warning: {_escape(note)}", ""]
    lines.append(f"{headline(comparison)}. Base `{_code(comparison.base)}`, new `{_code(comparison.new)}`.")
    lines += [f"- **{_escape(failure)}**" for failure in comparison.failures]
    timed = [(pair, row) for pair in comparison.pairs for row in pair.times]
    scores = [(pair, score) for pair in comparison.pairs for score in pair.scores]
    if timed:
        lines += [
            "",
            "| | base | new | new / base (interval) | Holm p | verdict |",
            "|---|---:|---:|---:|---:|---|",
            *(_markdown_row(*each) for each in timed),
        ]
    if scores:
        lines += ["", *(_item(f"{clean(pair.name)}: {_score(score)}") for pair, score in scores)]
    if figures := figures_line(comparison):
        changed = [_item(f"{clean(pair.name)}: {_figure(row)}") for pair, row in _changed(comparison)]
        lines += ["", _escape(figures), *changed]
    if details := _undecided(timed) + _unmatched(comparison):
        summary = "<details><summary>Not decided, not matched</summary>"
        lines += ["", summary, "", *map(_item, details), "", "</details>"]
    return "\n".join(lines) + "\n"


def _item(text: str) -> str:
    return f"- {_escape(text)}"


def _markdown_row(pair: Pair, row: TimeRow) -> str:
    verdict = f"**{row.verdict}**" if row.fails else row.verdict
    base, new = format_duration(row.base_s), format_duration(row.new_s)
    return f"| {_escape(_row_name(pair, row))} | {base} | {new} | {_ratio(row)} | {_p(row)} | {verdict} |"


def _row_name(pair: Pair, row: TimeRow) -> str:
    name = clean(pair.name)
    return name if row.figure == "median" else f"{name}: {row.figure}"


def _name_width(names: Sequence[str], width: int) -> int:
    """What is left beside the other columns, which take 58 of the terminal's."""
    return max(8, min(max(len(name) for name in names), max(width - 58, 18)))


def _ratio(row: TimeRow) -> str:
    ratio = row.ratio
    if ratio.level <= 0:  # a run on each side: no noise was seen, so nothing is known of it
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _p(row: TimeRow) -> str:
    """Holm's; in comparisons of version 1 the test's own."""
    p = row.p if row.adjusted_p is None else row.adjusted_p
    if p is None:
        return ""
    return "<1e-4" if p < 1e-4 else f"{p:.2g}"


def _score(row: ScoreRow) -> str:
    unit = " points" if row.figure == "accuracy" else ""
    shown = f"{row.base:.4g} -> {row.new:.4g}"
    interval = f" ({row.low:+.2f} to {row.high:+.2f})" if row.low is not None and row.high is not None else ""
    seeds = counted(row.seeds, "seed")
    text = f"{row.figure} {shown}, {row.difference:+.2f}{unit}{interval} over {seeds}: {row.verdict}"
    if row.why:
        text += f" ({row.why}" + (f"; about {row.repeats} seeds would decide)" if row.repeats else ")")
    return text


def _figure(row: FigureRow) -> str:
    allowed = f" (may differ by {row.tolerance:.1%})" if row.tolerance else ""
    return f"{clean(row.figure)} {plain(row.base)} -> {plain(row.new)}{allowed}"


def _changed(comparison: Comparison) -> list[tuple[Pair, FigureRow]]:
    return [(pair, row) for pair in comparison.pairs for row in pair.figures if row.changed]


def _unmatched(comparison: Comparison) -> list[str]:
    found = []
    for side, names in ((comparison.base, comparison.only_in_base), (comparison.new, comparison.only_in_new)):
        found += [f"only in {clean(side)}: {clean(name)}" for name in names[:_SHOWN]]
        if len(names) > _SHOWN:
            found.append(f"only in {clean(side)}: {len(names) - _SHOWN} more")
    found += [
        f"{clean(pair.name)}: no {clean(name)} in new" for pair in comparison.pairs for name in pair.missing
    ]
    return found


def _escape(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#~$@" else char for char in text)


def _code(text: str) -> str:
    return clean(text).replace("`", "'")
