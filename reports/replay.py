"""Whether replayed execution agrees with concurrent execution: measures, and writes replay.json and replay.md.

python reports/replay.py                 (ten minutes on a quiet machine of two cores or more; close other programs)
python reports/replay.py --seconds 200   (stops before; the same command again goes on where it stopped)
python reports/replay.py --again         (forgets what was measured before)
python reports/replay.py --page          (only the page, from the file)

Two ranks of one thread train for real. A round is one replayed run and two concurrent ones, in another order each
time; the first concurrent run is what the replayed one is compared with, and the second one shows how well concurrent
runs agree with each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from form import keep, made_on, netsim, page, table

from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "replay.json", HERE / "replay.md"
GROUPS = {
    ("topk,overlap=off", "topk,overlap=on"): 40,
    ("dense,overlap=off", "dense,overlap=on"): 8,
}
"""Methods that one command runs, and how many steps of each."""
WORDS = [
    "run",
    "--workers",
    "2",
    "--threads",
    "1",
    "--bandwidth",
    "200mbps",
    "--warmup",
    "5",
    "--repeats",
    "1",
    "--baseline",
    "none",
]
RUNS = {"concurrent": "concurrent", "replayed": "replayed", "floor": "concurrent"}
"""What a round runs, and the ``--execution`` of each."""
ORDERS = list(itertools.permutations(RUNS))
PHASES = ("compute", "compress", "communicate", "wait", "decompress", "optimizer", "other", "hidden")
LEVEL = 0.90
BAR_PERCENT = 5.0


def measure(names: tuple[str, ...], execution: str) -> dict[str, Any]:
    """For each method the slowest rank's step and, over its ranks and steps, the median of each phase; and the share of
    a core that other programs took meanwhile."""
    began, everybody, own = time.monotonic(), _used_by_all(), _used_by_children()
    document = netsim(*command(names), "--execution", execution)
    others = (_used_by_all() - everybody) - (_used_by_children() - own)
    cells: dict[str, Any] = {}
    for name, cell in zip(names, document["cells"], strict=True):
        steps = [step for rank in cell["repeats"][0]["ranks"] for step in rank["steps"]]
        cells[name] = {
            "step_s": cell["summary"]["step_s"]["median"],
            **{f"{phase}_s": statistics.median(step[f"{phase}_s"] for step in steps) for phase in PHASES},
            "replay": cell["replay"],
        }
    link = document["cells"][0]["link"]["mechanism"]
    return {"link": link, "others": max(others, 0.0) / (time.monotonic() - began), "cells": cells}


def _used_by_all() -> float:
    """Seconds of processor time that all processes of this machine have taken."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(map(int, words[1:4])) / os.sysconf("SC_CLK_TCK")  # user, nice, system


def _used_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(names: tuple[str, ...]) -> list[str]:
    return [*WORDS, "--steps", str(GROUPS[names]), *(word for name in names for word in ("--method", name))]


def median_interval(samples: list[float], level: float) -> tuple[float, float]:
    """The interval of the median between order statistics, interpolated as Hettmansperger and Sheather (Statistics and
    Probability Letters 4, 1986) do; of any continuous distribution.

    Raises:
        ValueError: too few samples for the level.
    """
    ordered, count = sorted(samples), len(samples)

    def level_of(depth: int) -> float:
        """Of the interval from the ``depth``-th smallest to the ``depth``-th largest."""
        return 1 - 2 * sum(math.comb(count, hits) for hits in range(depth)) / 2**count

    if level_of(1) < level:
        raise ValueError(f"{count} samples have no interval of {level:.0%}")
    depth = max(each for each in range(1, (count + 1) // 2 + 1) if level_of(each) >= level)
    outer, inner = level_of(depth), level_of(depth + 1)
    share = (outer - level) / (outer - inner)
    weight = (count - depth) * share / (depth + (count - 2 * depth) * share)
    low = (1 - weight) * ordered[depth - 1] + weight * ordered[depth]
    high = (1 - weight) * ordered[-depth] + weight * ordered[-depth - 1]
    return low, high


def differences(rounds: list[dict[str, Any]], name: str, ours: str) -> list[float]:
    """Of run ``ours`` to the concurrent one of the same round, in percent."""
    return [
        100 * (each[ours]["cells"][name]["step_s"] / each["concurrent"]["cells"][name]["step_s"] - 1)
        for each in rounds
    ]


def text(kept: dict[str, Any]) -> str:
    """The page."""
    of_method = {name: kept["rounds"][",".join(names)] for names in GROUPS for name in names}
    runs = [run for rounds in kept["rounds"].values() for each in rounds for run in each.values()]
    machine, others = kept["environment"], sorted(run["others"] for run in runs)
    cache = machine.get("l3_bytes")
    ours = {name: differences(rounds, name, "replayed") for name, rounds in of_method.items()}
    middles = [statistics.median(each) for each in ours.values()]
    ends = [end for each in ours.values() for end in median_interval(each, LEVEL)]
    return page(
        "Replayed and concurrent steps",
        "With cores for all ranks, is a replayed step as long as one that runs everything at once?",
        f"Replayed steps differ from concurrent ones by {min(middles):+.1f}% to {max(middles):+.1f}%, by method and in "
        f"the median of {min(map(len, ours.values()))} rounds or more; the {LEVEL:.0%} intervals reach from "
        f"{min(ends):+.1f}% to {max(ends):+.1f}%. The bar is {BAR_PERCENT:g}%.",
        [
            *(f"`netsim {' '.join(command(names))} --execution HOW`" for names in GROUPS),
            "Each round runs it replayed and twice concurrently, in another order each time. A difference is that of "
            "two runs' median steps (the slowest rank's) within a round; the table has the median over rounds, and its "
            f"{LEVEL:.0%} interval. The last column is the second concurrent run against the first one: how well a run "
            f"agrees with itself here. Other programs took {statistics.median(others):.2f} of a core meanwhile in the "
            f"median run, at most {others[-1]:.2f}.",
            table(
                [
                    "method",
                    "rounds",
                    "concurrent, ms",
                    "replayed, ms",
                    "replayed - concurrent",
                    f"{LEVEL:.0%} interval",
                    "concurrent - concurrent",
                ],
                [difference_cells(name, rounds) for name, rounds in of_method.items()],
            ),
            "Where the difference is, in ms: medians over ranks, steps and rounds.",
            table(
                ["method", "run", *PHASES],
                [
                    phase_cells(name, run, rounds)
                    for name, rounds in of_method.items()
                    for run in ("concurrent", "replayed")
                ],
            ),
            *slowdown([cell["replay"] for run in runs for cell in run["cells"].values()]),
        ],
        [
            "`python reports/replay.py` (a quarter of an hour). Each run's medians are in [replay.json](replay.json).",
            f"Made on {made_on(machine, kept.get('commit'))}"
            + (f", last-level cache {cache / 2**20:.0f} MiB" if cache else "")
            + f", link {runs[0]['link']}.",
        ],
        [
            "More ranks than cores, for which replay is made: a concurrent run is then no truth to compare with. That "
            "selection takes longer after the turns of others have emptied the caches is known, and not how much it is "
            "on a machine of one's own.",
            "Other models and links than these.",
        ],
    )


def difference_cells(name: str, rounds: list[dict[str, Any]]) -> list[object]:
    middles = {
        run: 1e3 * statistics.median(each[run]["cells"][name]["step_s"] for each in rounds) for run in RUNS
    }
    ours, floor = (differences(rounds, name, run) for run in ("replayed", "floor"))
    (low, high), (floor_low, floor_high) = (median_interval(each, LEVEL) for each in (ours, floor))
    bar = "" if abs(statistics.median(ours)) <= BAR_PERCENT else " **missed**"
    return [
        name,
        len(rounds),
        f"{middles['concurrent']:.2f}",
        f"{middles['replayed']:.2f}",
        f"{statistics.median(ours):+.1f}%{bar}",
        f"{low:+.1f} to {high:+.1f}%",
        f"{statistics.median(floor):+.1f}% ({floor_low:+.1f} to {floor_high:+.1f}%)",
    ]


def phase_cells(name: str, run: str, rounds: list[dict[str, Any]]) -> list[object]:
    cells = [each[run]["cells"][name] for each in rounds]
    figures = [1e3 * statistics.median(cell[f"{phase}_s"] for cell in cells) for phase in PHASES]
    return [name, run, *(f"{value:.2f}" for value in figures)]


def slowdown(replays: list[dict[str, Any] | None]) -> list[str]:
    """What measuring beside each other costs the ranks, where it was measured."""
    if not (played := [one for one in replays if one is not None]):
        return []
    slow = {
        key: statistics.median(value for one in played for value in one[key])
        for key in ("compute_slowdown", "memory_slowdown")
    }
    return [
        f"Ranks measure {played[0]['at_once']} at a time, as they run concurrently. That costs them "
        f"{slow['compute_slowdown']:.3f}x of what forward and backward take alone on this machine, and "
        f"{slow['memory_slowdown']:.3f}x for adding one buffer of the gradient's size to another: what a machine "
        "of its own would save each rank."
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=len(ORDERS))
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run that may end after it")
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    given = parser.parse_args()
    commands = [command(names) for names in GROUPS]
    kept: dict[str, Any] = {
        "words": commands,
        "environment": environment(),
        "commit": code_of([])[0].commit,
        "rounds": {},
    }
    if FILE.exists() and not given.again:
        before = json.loads(FILE.read_text())
        if before["words"] == commands and before["environment"]["cpu"] == kept["environment"]["cpu"]:
            kept = before
    if given.page:
        PAGE.write_text(text(json.loads(FILE.read_text())))
        return
    began, longest = time.monotonic(), 0.0
    for names in GROUPS:
        rounds = kept["rounds"].setdefault(",".join(names), [])
        for number in range(given.rounds):
            if number == len(rounds):
                rounds.append({})
            for run in ORDERS[number % len(ORDERS)]:
                if run in rounds[number]:
                    continue
                started = time.monotonic()
                if started - began + longest > given.seconds:
                    sys.exit(f"stopped in round {number + 1} of {names}: the same command goes on from here")
                rounds[number][run] = measure(names, RUNS[run])
                longest = max(longest, 1.2 * (time.monotonic() - started))
                keep(FILE, kept)
    PAGE.write_text(text(kept))


if __name__ == "__main__":
    main()
