"""One or several result files as what every exporter shows: cells in blocks that may be compared, each with a label.

Files are put beside each other, never into each other: a block's cells come from one file and share link, workers,
execution and whatever else the file's matrix varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from netsim_ddp.report.assumptions import assumed, assumptions
from netsim_ddp.report.labels import clean, plain, same_momentum
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import (
    COMPUTE_AXES,
    LINK_AXES,
    METHOD_AXES,
    WAY_AXES,
    is_dense,
    setting,
    summarise,
)
from netsim_ddp.results.training import summarise_training
from netsim_ddp.units import format_rate

# Axes that a cell's own fields tell already.
_TOLD = METHOD_AXES | LINK_AXES | WAY_AXES | {"workers", "model", "dataset"}


@dataclass(frozen=True)
class Source:
    """A result and the name that it goes by: its file's."""

    name: str
    result: Result


@dataclass(frozen=True)
class Entry:
    """A cell, its file, and its method's ``label``: the parameters that tell it apart in the whole collection.

    ``colour`` is the label without its overlap: what keeps one colour over all plots.
    """

    cell: Cell
    source: Source
    label: str
    colour: str

    @property
    def dense(self) -> bool:
        return is_dense(self.cell)


@dataclass(frozen=True)
class Block:
    """Entries that may be compared with each other, in the order in which they were run."""

    title: str
    source: Source
    entries: tuple[Entry, ...]
    heading: str = ""
    """The title, and what is assumed of the block's cells: for what stands alone, a table's caption."""

    @property
    def cells(self) -> list[Cell]:
        return [entry.cell for entry in self.entries]


class Collection:
    """The given files, in their order. Cells of version 1 get their scenario's model, unsummarised ones a summary."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = [Source(source.name, _completed(source.result)) for source in sources]

    @cached_property
    def blocks(self) -> list[Block]:
        keyed: dict[object, list[tuple[Source, Cell]]] = {}
        for number, source in enumerate(self.sources):
            for cell in source.result.cells:
                keyed.setdefault((number, block_key(cell)), []).append((source, cell))
        groups = list(keyed.values())
        labels = _Labels([[cell for _, cell in group] for group in groups])
        titles = self._titles([group[0] for group in groups])
        return [
            Block(
                ", ".join(parts),
                group[0][0],
                tuple(Entry(cell, source, *labels.of(cell)) for source, cell in group),
                _heading(parts, [cell for _, cell in group], group[0][0].result),
            )
            for parts, group in zip(titles, groups, strict=True)
        ]

    @cached_property
    def entries(self) -> list[Entry]:
        return [entry for block in self.blocks for entry in block.entries]

    @cached_property
    def colours(self) -> list[str]:
        """Every method once, dense first, then as they come: the order that colours and markers follow."""
        found = dict.fromkeys(
            entry.colour for entry in sorted(self.entries, key=lambda entry: not entry.dense)
        )
        return list(found)

    @property
    def title(self) -> str:
        """``simple_cnn, resnet50 | 2, 4 workers``: what is in here, in one line."""
        models = dict.fromkeys(model_name(entry.cell) for entry in self.entries)
        workers = sorted({entry.cell.workers for entry in self.entries})
        kinds = {source.result.kind for source in self.sources}
        what = "training" if kinds == {"training"} else "step times"
        parts = [", ".join(models) or "no cells", what]
        if workers:
            parts.append(_workers(*workers))
        return " | ".join(parts)

    def _titles(self, firsts: Sequence[tuple[Source, Cell]]) -> list[list[str]]:
        """What each block has that not all others have as well."""
        models = {(cell.model, cell.dataset) for _, cell in firsts}
        datasets = {cell.dataset for _, cell in firsts}
        ways = {(cell.execution, cell.link.mechanism, cell.device, cell.backend) for _, cell in firsts}
        titles = []
        for source, cell in firsts:
            parts = [model_name(cell)] if len(models) > 1 else []
            if len(models) > 1 and len(datasets) > 1 and cell.dataset:
                parts.append(clean(cell.dataset))
            parts += [_workers(cell.workers), link_name(cell)]
            parts += [f"{clean(key)}={clean(plain(value))}" for key, value in other_axes(cell).items()]
            if len(ways) > 1:
                parts += [cell.execution, cell.link.mechanism, clean(cell.device), clean(cell.backend)]
            if len(self.sources) > 1:
                parts.append(clean(source.name))
            titles.append(parts)
        return titles


def _heading(parts: Sequence[str], cells: Sequence[Cell], result: Result) -> str:
    """``parts`` of a title with what is assumed, each thing once."""
    found = assumptions(cells, result)
    said = assumed(cells[0], result)
    told = {said["execution"], *([cells[0].link.mechanism] if "link" in said else [])}
    axes = tuple(f"{key}=" for key in COMPUTE_AXES) if "compute" in said else ()
    return ", ".join([*(part for part in parts if part not in told and not part.startswith(axes)), *found])


def _workers(*counts: int) -> str:
    return f"{', '.join(map(str, counts))} worker{'' if counts == (1,) else 's'}"


def link_name(cell: Cell) -> str:
    """The link in words: ``1 Gbit/s``."""
    return clean(cell.link.shape or (format_rate(cell.bandwidth_bps) if cell.bandwidth_bps else "unshaped"))


def model_name(cell: Cell) -> str:
    return clean(cell.model or "model unknown")


def other_axes(cell: Cell) -> dict[str, Any]:
    """The axes of its matrix that no field of the cell tells: ``{"compute": "50ms"}``."""
    return {key: value for key, value in sorted(cell.axes.items()) if key not in _TOLD}


def block_key(cell: Cell) -> tuple[object, ...]:
    """What cells of one file must share to stand in one table."""
    return (cell.model, cell.dataset, *setting(cell), cell.link.delay_s, _frozen(other_axes(cell)))


def place_key(cell: Cell, *, without: str) -> tuple[object, ...]:
    """What cells must share to stand on one curve over ``without``: ``bandwidth`` or ``workers``."""
    link = cell.link
    where: tuple[object, ...] = (cell.workers,)
    if without == "workers":
        where = (cell.bandwidth_bps, link.shape)
    return (
        cell.model, cell.dataset, *where, link.mechanism, link.delay_s, link.varies, cell.execution, cell.device,
        cell.backend, _frozen(other_axes(cell)),
    )  # fmt: skip


def _frozen(axes: dict[str, Any]) -> str:
    return repr(sorted((key, plain(value)) for key, value in axes.items()))


def _completed(result: Result) -> Result:
    """``result`` with each cell's model, and with summaries where a file has samples and none."""
    cells = result.cells
    if result.kind == "training":
        cells = summarise_training(cells)
    if any(cell.summary is None and any(rank.steps for repeat in cell.repeats for rank in repeat.ranks)
           for cell in cells):  # fmt: skip
        cells = summarise(cells)
    known = {key: result.scenario.get(key) for key in ("model", "dataset")}
    filled = [
        cell.model_copy(
            update={
                key: value
                for key, value in known.items()
                if getattr(cell, key) is None and isinstance(value, str)
            }
        )
        for cell in cells
    ]
    return result.model_copy(update={"cells": filled})


class _Labels:
    """Labels that are the same for a method wherever it stands: on another link, with other workers."""

    def __init__(self, groups: Sequence[Sequence[Cell]]) -> None:
        values: dict[str, dict[str, set[str | None]]] = {}
        cells = [cell for group in groups for cell in group]
        keys: dict[str, set[str]] = {}
        for cell in cells:
            keys.setdefault(cell.method, set()).update(_params(cell))
        for cell in cells:
            params = _params(cell)
            seen = values.setdefault(cell.method, {})
            for key in keys[cell.method]:
                seen.setdefault(key, set()).add(params.get(key))
        self._telling = {
            method: sorted(key for key, found in seen.items() if len(found) > 1)
            for method, seen in values.items()
        }
        for method, telling in self._telling.items():
            if same_momentum([cell for cell in cells if cell.method == method]) and "momentum" in telling:
                telling.remove("momentum")
        # Threads follow from workers and cores in most sweeps; they tell methods apart only within one block.
        self._threads = False
        for group in groups:
            once = {(self._name(cell), cell.overlap, cell.substituted) for cell in group}
            with_threads = {
                (self._name(cell), cell.overlap, cell.substituted, cell.threads) for cell in group
            }
            self._threads |= len(with_threads) > len(once)

    def of(self, cell: Cell) -> tuple[str, str]:
        """The label, and the label without overlap."""
        parts = [self._name(cell)]
        if self._threads:
            parts.append(f"threads={cell.threads}")
        if cell.substituted:
            parts.append("substituted")
        colour = ",".join(parts)
        return (f"{colour},overlap" if cell.overlap else colour), colour

    def _name(self, cell: Cell) -> str:
        params = _params(cell)
        told = [f"{key}={params[key]}" for key in self._telling.get(cell.method, ()) if key in params]
        return clean(",".join([cell.method, *told]))


def _params(cell: Cell) -> dict[str, str]:
    """As text; a collective that ``auto`` chose is not what the user asked to compare."""
    return {
        key: plain(value)
        for key, value in cell.params.items()
        if key != "overlap" and (key != "collective" or "collective=" in cell.id)
    }
