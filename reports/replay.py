"""Whether replayed execution agrees with concurrent execution: measures, and writes replay.json and replay.md.

python reports/replay.py                 (ten minutes on a quiet machine of two cores or more; close other programs)
python reports/replay.py --seconds 200   (stops before; the same command again goes on where it stopped)
python reports/replay.py --again         (forgets what was measured before)

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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from netsim_ddp.steps.environment import environment

HERE = Path(__file__).parent
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


def netsim(*words: str) -> dict[str, Any]:
    print("netsim", *words, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:  # not to fill .netsim
        done = subprocess.run(
            [sys.executable, "-m", "netsim_ddp", *words, "--json", "-"],
            stdout=subprocess.PIPE,
            cwd=folder,
            timeout=600,
            check=True,
        )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


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


def page(kept: dict[str, Any]) -> str:
    of_method = {name: kept["rounds"][",".join(names)] for names in GROUPS for name in names}
    runs = [run for rounds in kept["rounds"].values() for each in rounds for run in each.values()]
    machine = kept["environment"]
    cache = machine.get("l3_bytes")
    others = sorted(run["others"] for run in runs)
    lines = [
        "# Replayed and concurrent agree",
        "",
        f"Made by `python reports/replay.py` on {machine['cpu']}, {machine['cores']} cores"
        + (f", last-level cache {cache / 2**20:.0f} MiB" if cache else "")
        + f", link {runs[0]['link']}:",
        "",
        *(line for names in GROUPS for line in (f"`netsim {' '.join(command(names))} --execution HOW`", "")),
        "Each round runs it replayed and twice concurrently, in another order each time. A difference is that of two "
        "runs' median steps (the slowest rank's) within a round; the table has the median over rounds, and its "
        f"{LEVEL:.0%} interval. The bar is {BAR_PERCENT:g}%. The last column is the second concurrent run against the "
        "first one: how well a run agrees with itself here. Other programs took "
        f"{statistics.median(others):.2f} of a core meanwhile in the median run, at most {others[-1]:.2f}.",
        "",
        "| method | rounds | concurrent, ms | replayed, ms | replayed - concurrent | 90% interval "
        "| concurrent - concurrent |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rounds in of_method.items():
        middles = {
            run: 1e3 * statistics.median(each[run]["cells"][name]["step_s"] for each in rounds)
            for run in RUNS
        }
        ours, floor = (differences(rounds, name, run) for run in ("replayed", "floor"))
        low, high = median_interval(ours, LEVEL)
        floor_low, floor_high = median_interval(floor, LEVEL)
        bar = "" if abs(statistics.median(ours)) <= BAR_PERCENT else " **missed**"
        row = [
            name,
            len(rounds),
            f"{middles['concurrent']:.2f}",
            f"{middles['replayed']:.2f}",
            f"{statistics.median(ours):+.1f}%{bar}",
            f"{low:+.1f} to {high:+.1f}%",
            f"{statistics.median(floor):+.1f}% ({floor_low:+.1f} to {floor_high:+.1f}%)",
        ]
        lines.append(f"| {' | '.join(map(str, row))} |")
    lines += ["", "Where the difference is, in ms: medians over ranks, steps and rounds.", ""]
    lines += [f"| method | run | {' | '.join(PHASES)} |", f"|---|---|{'---|' * len(PHASES)}"]
    for name, rounds in of_method.items():
        for run in ("concurrent", "replayed"):
            cells = [each[run]["cells"][name] for each in rounds]
            figures = [1e3 * statistics.median(cell[f"{phase}_s"] for cell in cells) for phase in PHASES]
            lines.append(f"| {name} | {run} | {' | '.join(f'{value:.2f}' for value in figures)} |")
    played = [cell["replay"] for run in runs for cell in run["cells"].values() if cell["replay"] is not None]
    if played:
        slow = {
            key: statistics.median(value for one in played for value in one[key])
            for key in ("compute_slowdown", "memory_slowdown")
        }
        lines += [
            "",
            f"Ranks measure {played[0]['at_once']} at a time, as they run concurrently. That costs them "
            f"{slow['compute_slowdown']:.3f}x of what forward and backward take alone on this machine, and "
            f"{slow['memory_slowdown']:.3f}x for adding one buffer of the gradient's size to another: what a machine "
            "of its own would save each rank.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=len(ORDERS))
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run that may end after it")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    given = parser.parse_args()
    commands = [command(names) for names in GROUPS]
    kept: dict[str, Any] = {"words": commands, "environment": environment(), "rounds": {}}
    if FILE.exists() and not given.again:
        before = json.loads(FILE.read_text())
        if before["words"] == commands and before["environment"]["cpu"] == kept["environment"]["cpu"]:
            kept = before
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
                partial = FILE.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(kept, indent=1) + "\n")
                partial.replace(FILE)
    PAGE.write_text(page(kept))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
