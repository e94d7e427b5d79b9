"""Several results of one scenario become one: their repeats stand side by side, as if one command had run them."""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.errors import UsageError
from netsim_ddp.results.identity import differ, rules
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import notes, summarise


def merge(results: Sequence[Result]) -> Result:
    """One result with all repeats, in the order given; summaries are computed anew.

    Args:
        results: at least one, of the same code and scenario on the same machine: the caller makes sure of that.

    Raises:
        UsageError: they do not have the same cells, or were measured by different rules.
    """
    first = results[0]
    names = [cell.id for cell in first.cells]
    for other in results[1:]:
        if [cell.id for cell in other.cells] != names:
            raise UsageError("results of different cells cannot be merged")
        for ours, theirs in zip(first.cells, other.cells, strict=True):
            if (
                said := differ(rules(ours, first), "the first result", rules(theirs, other), "another")
            ) is not None:
                raise UsageError(said)
    cells = [_merged([result.cells[i] for result in results]) for i in range(len(names))]
    warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
    merged = first.model_copy(
        update={
            "status": next((each.status for each in results if each.status != "complete"), "complete"),
            "scenario": {
                **first.scenario,
                "repeats": max(len(cell.repeats) for cell in cells) if cells else 0,
            },
            "ready": {key: each for result in results for key, each in result.ready.items()},
            "cells": summarise(cells),
        }
    )
    merged.warnings = [*warnings, *(note for note in notes(merged.cells) if note not in warnings)]
    return merged


def _merged(cells: Sequence[Cell]) -> Cell:
    links = [cell.link for cell in cells]
    return cells[0].model_copy(
        update={
            "link": links[0].model_copy(
                update={
                    "drops": sum(link.drops for link in links),
                    "retransmits": sum(link.retransmits for link in links),
                    "measured_bps": min(
                        (rate for link in links if (rate := link.measured_bps)), default=None
                    ),
                    "together_bps": min(
                        (rate for link in links if (rate := link.together_bps)), default=None
                    ),
                    "host_limited": any(link.host_limited for link in links),
                }
            ),
            "ready": list(dict.fromkeys(key for cell in cells for key in cell.ready)),
            "repeats": [repeat for cell in cells for repeat in cell.repeats],
            "error": next((cell.error for cell in cells if cell.error), None),
        }
    )
