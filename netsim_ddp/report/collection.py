"""One or several result files as what every exporter shows: cells in blocks that may be compared, each with a label.

Files are put beside each other, never into each other: a block's cells come from one file and share link, workers,
execution and whatever else the file's matrix varies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from netsim_ddp.report.assumptions import assumed, assumptions
from netsim_ddp.results.identity import COMPUTE_AXES, groups
from netsim_ddp.results.labels import Labels, axis_labels, clean, link_label, model_label, workers_label
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.recording import Recording
from netsim_ddp.results.summary import is_dense, summarise
from netsim_ddp.results.training import summarise_training

ItemType = TypeVar("ItemType")


def grouped(items: Iterable[ItemType], key: Callable[[ItemType], object]) -> list[list[ItemType]]:
    """Returns ``items`` in lists of equal ``key``, in the order in which the keys first appear."""
    found: dict[object, list[ItemType]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


@dataclass(frozen=True)
class Source:
    """A result and the name that it goes by: its file's; and of the recordings that it played those that are there."""

    name: str
    result: Result
    recordings: tuple[Recording, ...] = ()


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
        self.sources = [replace(source, result=_completed(source.result)) for source in sources]

    @cached_property
    def blocks(self) -> list[Block]:
        found = [(source, cells) for source in self.sources for cells in groups(source.result.cells)]
        labels = Labels([cells for _, cells in found])
        titles = self._titles([(source, cells[0]) for source, cells in found])
        return [
            Block(
                ", ".join(parts),
                source,
                tuple(Entry(cell, source, labels.of(cell), labels.of(cell, overlap=False)) for cell in cells),
                _heading(parts, cells, source.result),
            )
            for parts, (source, cells) in zip(titles, found, strict=True)
        ]

    @cached_property
    def entries(self) -> list[Entry]:
        return [entry for block in self.blocks for entry in block.entries]

    @cached_property
    def colours(self) -> list[str]:
        """Every method once, dense first, then as they come: the order that colours and markers follow."""
        dense_first = sorted(self.entries, key=lambda entry: not entry.dense)
        return list(dict.fromkeys(entry.colour for entry in dense_first))

    @property
    def title(self) -> str:
        """``simple_cnn, resnet50 | 2, 4 workers``: what is in here, in one line."""
        models = dict.fromkeys(model_label(entry.cell) for entry in self.entries)
        workers = sorted({entry.cell.workers for entry in self.entries})
        kinds = {source.result.kind for source in self.sources}
        what = "training" if kinds == {"training"} else "step times"
        counts = [workers_label(*workers)] if workers else []
        return " | ".join([", ".join(models) or "no cells", what, *counts])

    def _titles(self, firsts: Sequence[tuple[Source, Cell]]) -> list[list[str]]:
        """What each block has that not all others have as well."""
        models = {(cell.model, cell.dataset) for _, cell in firsts}
        datasets = {cell.dataset for _, cell in firsts}
        ways = {(cell.execution, cell.link.mechanism, cell.device, cell.backend) for _, cell in firsts}
        titles = []
        for source, cell in firsts:
            parts = [model_label(cell)] if len(models) > 1 else []
            if len(models) > 1 and len(datasets) > 1 and cell.dataset:
                parts.append(clean(cell.dataset))
            parts += [workers_label(cell.workers), link_label(cell), *axis_labels(cell)]
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
