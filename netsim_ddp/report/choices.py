"""What netsim chose for a method where the user said nothing: told alike below the table of every command."""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.methods import takes
from netsim_ddp.methods.topk import collective_words
from netsim_ddp.report.predictions import uncertainty
from netsim_ddp.results.identity import asked_params, settings_of
from netsim_ddp.results.labels import clean, label, link_label, workers_label
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.units import counted

_MOST_PLACES = 4


def choices(result: Result) -> list[str]:
    """What was sent whole under Adam, how Top-K's entries travelled, and of predictions how sure they are: whole
    sentences, each a line of its own."""
    measured = [cell for cell in result.cells if cell.repeats]
    return _sent_whole(measured, result) + _collectives(measured) + uncertainty(measured)


def _sent_whole(cells: Sequence[Cell], result: Result) -> list[str]:
    found: dict[str, dict[str, int]] = {}
    plain = {label(cell, [cell]) for cell in cells if not cell.params.get("dense_below")}
    for cell in cells:
        settings = settings_of(cell, result)
        recording = settings.get("recording")
        said = recording if isinstance(recording, dict) else settings
        optimizer, below = clean(str(said.get("optimizer") or "sgd")), cell.params.get("dense_below")
        if optimizer.lower() != "sgd" and below:
            name = label(cell, [cell])
            name += f",dense_below={below}" if name in plain else ""
            found.setdefault(optimizer, {})[name] = int(str(below))
    return [
        f"Under {optimizer} {', '.join(methods)} sent parameters of fewer than {max(methods.values()):,} entries whole "
        "(dense_below, docs/training.md); dense_below=0 is plain Top-K."
        for optimizer, methods in found.items()
    ]


def _collectives(cells: Sequence[Cell]) -> list[str]:
    """``topk sent its entries by split-reduce (fewer bytes) at 8 workers, by all-gather (...) at 2 workers.``"""
    chosen = [
        (cell, str(collective))
        for cell in cells
        if takes(cell.method, "collective") and (collective := cell.params.get("collective"))
        if "collective" not in asked_params(cell)
    ]
    told = {(label(cell, [cell]), cell.workers, collective) for cell, collective in chosen}
    by_workers = len(told) == len({(method, workers) for method, workers, _ in told})
    found: dict[str, dict[str, list[Cell]]] = {}
    for cell, collective in chosen:
        name, why = collective_words(collective)
        found.setdefault(label(cell, [cell]), {}).setdefault(f"by {name} ({why})", []).append(cell)
    return [
        f"{method} sent its entries "
        f"{', '.join(f'{how} at {_places(there, by_workers=by_workers)}' for how, there in ways.items())}."
        for method, ways in found.items()
    ]


def _places(cells: Sequence[Cell], *, by_workers: bool) -> str:
    """Where ``cells`` are: by their workers, where these tell them apart from others, else with the link's rate."""
    if by_workers:
        return workers_label(*sorted({cell.workers for cell in cells}))
    places = list(dict.fromkeys(f"{workers_label(cell.workers)} and {link_label(cell)}" for cell in cells))
    more = len(places) - _MOST_PLACES
    return ", ".join(places[:_MOST_PLACES]) + (f" and {counted(more, 'other setting')}" if more > 0 else "")
