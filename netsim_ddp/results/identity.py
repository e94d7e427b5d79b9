"""By which rules a figure came about, where netsim has had several: figures of two rules are never compared.

A cell's own fields say what it is; what stands here depends on the file too. A file that predates a rule does not name
it, its schema version tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netsim_ddp.results.record import Cell, Result

Rules = Mapping[str, str]
"""What a rule is about, and which one held; without those that a cell's figures do not depend on."""
READY, TCP = "buckets become full", "TCP on the bucket"
RULES = (READY, TCP)
SINCE = 4
"""The schema version whose files know these rules."""
BY_BYTES = "in proportion to bytes, which no backward pass does"
AS_MEASURED = "as in a real backward pass"
IDEAL = "ideal"


def rules(cell: Cell, result: Result) -> dict[str, str]:
    """The rules that ``cell`` of ``result`` was measured by."""
    found = place_rules(cell, result)
    if not cell.overlap:
        found.pop(READY, None)
    elif READY in found and (
        sources := {result.ready[key].source for key in cell.ready if key in result.ready}
    ):
        found[READY] += "".join(f" of {source}" for source in sorted(filter(None, sources)))
    return found


def place_rules(cell: Cell, result: Result) -> dict[str, str]:
    """Those of all cells that may stand on one curve with ``cell``, whether they overlap or not."""
    found = {}
    if compute_s(cell, result) > 0:
        found[READY] = BY_BYTES if result.schema_version < SINCE else AS_MEASURED
    if cell.link.mechanism == "bucket" and cell.link.delay_s > 0:
        found[TCP] = IDEAL if result.schema_version < SINCE else cell.link.tcp or IDEAL
    return found


def outdated(cell: Cell, result: Result) -> bool:
    """Whether ``cell`` was measured by a rule that this netsim has given up."""
    return result.schema_version < SINCE and bool(rules(cell, result))


def differ(base: Rules, base_name: str, new: Rules, new_name: str) -> str | None:
    """Why figures of ``base`` and ``new`` are not compared, and what to do; None where the same rules hold for both."""
    for about in RULES:
        ours, theirs = base.get(about), new.get(about)
        if ours is not None and theirs is not None and ours != theirs:
            return (
                f"{about}: {ours} in {base_name}, {theirs} in {new_name}, and figures of two rules are not compared; "
                "measure both with this netsim and the same options"
            )
    return None


def compute_s(cell: Cell, result: Result) -> float:
    """The compute that was emulated, seconds; 0 where it was real."""
    found = settings_of(cell, result).get("compute_s")
    return float(found) if isinstance(found, int | float) else 0.0


def settings_of(cell: Cell, result: Result) -> Mapping[str, Any]:
    """The resolved settings that the cell was run with: a sweep's stand with each of its places."""
    scenario = result.scenario
    sweep = scenario.get("sweep")
    runs = sweep.get("runs") if isinstance(sweep, dict) else None
    for run in runs if isinstance(runs, list) else ():
        axes, settings = (run.get("axes"), run.get("settings")) if isinstance(run, dict) else (None, None)
        if not isinstance(axes, dict) or not isinstance(settings, dict):
            continue
        if all(key in cell.axes and cell.axes[key] == value for key, value in axes.items()):
            return settings
    return scenario
