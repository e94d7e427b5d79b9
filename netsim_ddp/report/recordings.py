"""A recording in words and tables, as the terminal and the page show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from netsim_ddp.errors import UsageError
from netsim_ddp.report.labels import DASH, count_of
from netsim_ddp.report.tables import Column, Table, table_of
from netsim_ddp.results.identity import recording_of
from netsim_ddp.results.record import Result
from netsim_ddp.results.recorded import found
from netsim_ddp.results.recorded_steps import (
    PART_NAMES,
    PARTS,
    BucketTimes,
    SeenStep,
    Spread,
    longest_step_s,
    spread,
    without_exchange_s,
)
from netsim_ddp.results.recording import Overhead, Recording
from netsim_ddp.results.stats import ratio_interval
from netsim_ddp.units import counted, format_bytes, format_duration

HOW = {
    "ddp": "under DDP",
    "plain": "no DDP: buckets by its rule",
    "fsdp2": "under FSDP2",
    "trace": "from a profiler's trace",
}
"""How a recording was seen, by its source."""
NARROWER = ("first", "done range", "type", "full range", "apart")
"""Columns of :func:`bucket_table` in the order in which they may be left out."""
MOST_BUCKETS = 60
"""Rows of a table; of more a line tells."""
_MOST_RANKS = 16
_LEAST_LEVEL = 0.89
"""Of an interval of what watching costs: three steps of each kind give 0.9."""


def at_hand(result: Result, file: str) -> tuple[list[Recording], list[str]]:
    """The recordings that ``result``, of ``file``, played, as far as they lie beside it or in the current directory;
    and of the others the names of their files."""
    played = [recorded for cell in result.cells if (recorded := recording_of(cell, result)) is not None]
    here, missing = [], []
    for recorded in {each.key: each for each in played}.values():
        try:
            here.append(recorded.model_copy(update={"path": str(found(recorded.path, file))}).open())
        except UsageError:
            missing.append(Path(recorded.path).name)
    return here, missing


def header(recording: Recording) -> str:
    """``Net, 12.3M parameters in 5 buckets (under DDP, hook f) | 2 ranks on cpu | SGD | batch 32``."""
    devices = ", ".join(dict.fromkeys(each.device for each in recording.ranks))
    hook = f", hook {recording.hook}" if recording.hook else ""
    parts = [
        f"{recording.model}, {count_of(recording.numel)} parameters in {counted(len(recording.buckets), 'bucket')} "
        f"({HOW[recording.source]}{hook})",
        f"{counted(recording.world_size, 'rank')} on {devices}",
        *([recording.optimizer] if recording.optimizer else []),
        *([f"batch {recording.batch_size}"] if recording.batch_size else []),
    ]
    return " | ".join(parts)


def origin(recording: Recording) -> str:
    """When it was recorded, by what, and of what."""
    text = " ".join(recording.program)
    shown = text if len(text) <= 300 else f"{text[:297]}..."
    return f"recorded {recording.created_utc} by {recording.tool.name} {recording.tool.version}: {shown}"


def sentences(recording: Recording, seen: Sequence[Sequence[SeenStep]]) -> list[str]:
    """What follows for a step that is exchanged; nothing of a training on one rank."""
    if recording.world_size == 1 or recording.source == "plain":
        return []
    missing = [unseen(len(seen), recording.world_size)] if len(seen) < recording.world_size else []
    return [no_exposed(without_exchange_s(seen), longest_step_s(seen)), *missing]


def no_exposed(without_s: float, step_s: float) -> str:
    return (
        f"Without exposed communication a step would take {format_duration(without_s)} instead of "
        f"{format_duration(step_s)}: worked out from these moments, not measured."
    )


def unseen(seen: int, world: int) -> str:
    """Of ``world`` ranks only ``seen`` were seen."""
    was, these = ("was", "this rank") if seen == 1 else ("were", "these ranks")
    return (
        f"{seen} of {world} ranks {was} seen: the exposed communication of {these} may be a wait for others."
    )


def held(recording: Recording, file_bytes: int) -> str:
    """What the file holds, which a reader who passes it on wants to know."""
    gradients, begin = recording.gradients, f"{format_bytes(file_bytes)}, holds no data and no parameters"
    if gradients.kind == "synthetic":
        return f"{begin}, and no gradients: those that are played are drawn from a normal distribution."
    if not gradients.steps:
        return f"{begin}, and no gradients."
    whole = sum(parameter.numel for parameter in recording.parameters)
    share = sum(gradients.kept) / whole if whole else 1.0
    what = "all gradients" if share == 1 else f"samples of the gradients ({share * 100:.2g}% of them)"
    numbers = ", ".join(str(number) for number in gradients.steps)
    steps = f"step{'' if len(gradients.steps) == 1 else 's'} {numbers}"
    return f"{begin}, but {what} of {steps}, from which something of the data can be reconstructed."


def energy(top: Sequence[float | None]) -> list[str]:
    """How few entries the energy of each set of gradients is in; nothing where there is none.

    Args:
        top: of each set the share of its energy that the largest 1% of the entries hold.
    """
    known = ", ".join(DASH if each is None else f"{each:.0%}" for each in top)
    return [f"The largest 1% of the gradients' entries hold {known} of their energy."] if known else []


def split_line(seen: Sequence[Sequence[SeenStep]]) -> str:
    """``step 184 ms: data 3 ms, ...``, medians of the first rank that was seen."""
    first = [each.parts for each in seen[0]]
    parts = [(name, median(each[name] for each in first)) for name in PARTS]
    passes = median(len(each.step.passes) for each in seen[0])
    of = f"medians of {counted(len(first), 'step')}, rank {seen[0][0].rank}"
    of += f", {passes:g} passes each" if passes > 1 else ""
    said = ", ".join(
        f"{PART_NAMES.get(name, name)} {format_duration(value)}" for name, value in parts if value
    )
    return f"step {format_duration(median(each.step.end_s for each in seen[0]))}: {said} ({of})"


def watching(overhead: Overhead | None) -> str:
    """What recording cost."""
    if overhead is None or (share := overhead.share) is None:
        return "What watching cost was not measured."

    def shown(times: Sequence[float]) -> str:
        found = spread(times)
        return " ".join((format_duration(found.median), f"({_range(found)} ms)"))

    steps = (
        f"{shown(overhead.on_s)} watched, {shown(overhead.off_s)} not, {len(overhead.on_s)} and "
        f"{counted(len(overhead.off_s), 'step')} in turns"
    )
    if min(*overhead.on_s, *overhead.off_s) <= 0:  # no ratio, and so no interval
        return f"What watching costs is not measurable: {steps}."
    found = ratio_interval(overhead.off_s, overhead.on_s)
    if found.level < _LEAST_LEVEL:
        return f"What watching costs is not measurable from so few steps: {steps}."
    if found.low > 1:
        return f"Watching cost {share:+.1%} of a step: {steps}."
    most = (
        f"below {100 * (found.high - 1):.2g}% of a step" if found.high > 1 else "watched steps were shorter"
    )
    return f"What watching costs is not measurable ({most}): {steps}."


def split_tables(seen: Sequence[Sequence[SeenStep]]) -> list[Table]:
    """Parts of a step as rows: over all ranks, and where there are several the median of each; then the same with
    fewer columns."""
    parts = [[each.parts for each in rank] for rank in seen]
    lengths = [[each.step.end_s for each in rank] for rank in seen]
    named = [("step", lengths), *((name, [[of[name] for of in rank] for rank in parts]) for name in PARTS)]
    shown = [(name, ranks) for name, ranks in named if name == "step" or any(max(rank) > 0 for rank in ranks)]
    count, passes = len(seen[0]), sorted({len(each.step.passes) for rank in seen for each in rank})
    title = counted(count, "step")
    if passes != [1]:
        title += f" of {' to '.join(map(str, dict.fromkeys((passes[0], passes[-1]))))} passes"
    several = [str(rank[0].rank) for rank in seen[:_MOST_RANKS]] if len(seen) > 1 else []
    tables = []
    for spreads, single in ((True, True), (True, False), (False, False)):
        rows = []
        for name, ranks in shown:
            over = spread([value for rank in ranks for value in rank])
            own = [ms(median(rank)) for rank in ranks[: len(several)]] if single else []
            rows.append(
                (PART_NAMES.get(name, name), ms(over.median), *([_range(over)] if spreads else []), *own)
            )
        heads = ["lowest..highest"] if spreads else []
        ranks_heads = [f"rank {number}" for number in several] if single else []
        tables.append(Table((f"{title}, ms", "median", *heads, *ranks_heads), rows, "Where a step went"))
    return tables


def bucket_table(rows: Sequence[BucketTimes], without: Sequence[str] = ()) -> Table:
    """Buckets as rows; columns of what nobody saw are left out, and those that ``without`` names."""
    columns: list[Column[BucketTimes]] = [
        Column("bucket", "bucket", lambda row: str(row.number)),
        Column("parameters", "parameters", lambda row: str(len(row.bucket.parameters)) or DASH),
        Column(
            "first",
            "from",
            lambda row: _cut(row.bucket.parameters[0] if row.bucket.parameters else DASH),
            "left",
        ),
        Column("MB", "MB", lambda row: f"{row.bucket.bytes / 1e6:.4g}"),
        Column("type", "type", lambda row: row.bucket.dtype, "left"),
        Column("full", "full\nat ms", lambda row: _median(row.full)),
        Column("full range", "full\nrange", lambda row: _range(row.full)),
        Column("done", "done\nat ms", lambda row: _median(row.done)),
        Column("done range", "done\nrange", lambda row: _range(row.done)),
        Column("exposed", "exposed\nms", lambda row: _median(row.exposed)),
        Column("apart", "ranks\napart ms", lambda row: _median(row.apart)),
    ]
    unseen = {
        name
        for name, known in (
            ("done", [row.done for row in rows]),
            ("exposed", [row.exposed for row in rows]),
            ("apart", [row.apart for row in rows]),
        )
        if not any(known)
    }
    unseen |= {"done range"} if "done" in unseen else set()
    return table_of(
        [column for column in columns if column.name not in {*without, *unseen}],
        rows,
        "Buckets, in the order in which they are exchanged",
    )


def more_buckets(rows: Sequence[BucketTimes]) -> list[str]:
    """What stands below a table of the first :data:`MOST_BUCKETS` of ``rows``; nothing where these are all."""
    if not (rest := rows[MOST_BUCKETS:]):
        return []
    return [f"{counted(len(rest), 'more bucket')} of {format_bytes(sum(row.bucket.bytes for row in rest))}"]


def _cut(text: str) -> str:
    return text if len(text) <= 32 else f"..{text[-30:]}"


def ms(seconds: float) -> str:
    """``12.35``, in milliseconds."""
    value = round(seconds * 1e3, 3)  # finer is the clock's own noise
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _median(value: Spread | None) -> str:
    return DASH if value is None else ms(value.median)


def _range(value: Spread | None) -> str:
    return DASH if value is None else f"{ms(value.low)}..{ms(value.high)}"
