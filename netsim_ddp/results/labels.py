"""What cells are called: one rule for every table, plot, page and file.

A method has two names. Its id (:func:`netsim_ddp.results.identity.method_id`) is what ``--method`` takes, with all its
options; its label says no more than tells it from the others beside it: ``topk,ratio=0.01,overlap``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netsim_ddp.errors import printable
from netsim_ddp.options import written
from netsim_ddp.results.identity import (
    LINK_AXES,
    METHOD_AXES,
    TOLD_AXES,
    asked_params,
    link_description,
    link_without_rate,
)
from netsim_ddp.results.record import Cell
from netsim_ddp.units import counted


def clean(text: str) -> str:
    """Returns ``text`` as one printable line: a file from elsewhere must not move the cursor or colour the terminal."""
    return printable(text).strip()


class Labels:
    """The labels of cells, the same for a method wherever among them it stands: on another link, with other workers.

    Args:
        groups: the cells; those of one group are compared with each other.
    """

    def __init__(self, groups: Sequence[Sequence[Cell]]) -> None:
        cells = [cell for group in groups for cell in group]
        self._telling = {
            method: _telling([cell for cell in cells if cell.method == method])
            for method in dict.fromkeys(cell.method for cell in cells)
        }
        # Threads follow from workers and cores in most sweeps; they tell methods apart only within one group.
        self._threads = False
        for group in groups:
            named = {(self.of(cell), cell.threads) for cell in group}
            self._threads |= len(named) > len({name for name, _ in named})

    def of(self, cell: Cell, *, overlap: bool = True) -> str:
        """Returns ``topk,ratio=0.01,overlap``: the method with the options that tell it apart; or without overlap."""
        threads = [f"threads={cell.threads}"] if self._threads else []
        return _label(cell, self._telling.get(cell.method, ()), threads, overlap=overlap)


def label(cell: Cell, cells: Sequence[Cell]) -> str:
    """Returns the label of ``cell`` among ``cells``, which are compared with each other."""
    return Labels([cells]).of(cell)


def full_label(cell: Cell) -> str:
    """Returns ``topk,ratio=0.01,values=fp32,overlap``: with all options, for a name that must not depend on others."""
    return _label(cell, sorted(asked_params(cell)), [], overlap=True)


def _label(cell: Cell, keys: Sequence[str], more: Sequence[str], *, overlap: bool) -> str:
    params = _params(cell)
    parts = [cell.method, *(f"{key}={params[key]}" for key in keys if key in params), *more]
    if cell.overlap and overlap:
        parts.append("overlap")
    if cell.substituted:
        parts.append("substituted")
    return clean(",".join(parts))


def _params(cell: Cell) -> Mapping[str, str]:
    return {key: written(value) for key, value in asked_params(cell).items()}


def _telling(cells: Sequence[Cell]) -> list[str]:
    """Returns the options in which ``cells`` of one method differ."""
    params = [_params(cell) for cell in cells]
    keys = sorted({key for each in params for key in each})
    telling = [key for key in keys if len({each.get(key) for each in params}) > 1]
    # Without feedback no momentum can be corrected: that is no difference that anybody asked for.
    momenta = {str(cell.params.get("momentum")) for cell in cells if cell.params.get("feedback", True)}
    return [key for key in telling if key != "momentum" or len(momenta) != 1]


def workers_label(*counts: int) -> str:
    """Returns ``2, 4 workers``."""
    return counted(counts, "worker")


def link_label(cell: Cell) -> str:
    """Returns the link in words: ``1 Gbit/s``."""
    return clean(link_description(cell))


def model_label(cell: Cell) -> str:
    """Returns the model, as ``--model`` takes it."""
    return clean(cell.model or "model unknown")


def axis_labels(cell: Cell, *, without: frozenset[str] = TOLD_AXES) -> list[str]:
    """Returns ``compute=50ms``: the axes of its matrix that no field of the cell tells, by name."""
    return [
        clean(f"{key}={written(value)}") for key, value in sorted(cell.axes.items()) if key not in without
    ]


def group_label(cells: Sequence[Cell]) -> str:
    """Returns ``8 workers, 1 Gbit/s, compute=50ms``: what the cells of one table share."""
    return ", ".join(
        [
            workers_label(cells[0].workers),
            link_label(cells[0]),
            *axis_labels(cells[0], without=METHOD_AXES | LINK_AXES | {"workers"}),
        ]
    )


def curve_label(cell: Cell) -> str:
    """Returns ``replayed, tc, delay 5 ms``: what the cells of one plot over bandwidth share, but for model, workers."""
    parts = [cell.execution, cell.link.mechanism, clean(link_without_rate(cell)), *axis_labels(cell)]
    return ", ".join(part for part in parts if part)
