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

from netsim_ddp.bench.environment import environment

HERE = Path(__file__).parent
FILE, PAGE = HERE / "replay.json", HERE / "replay.md"
GROUPS = {
    ("dense,overlap=off", "dense,overlap=on"): 10,
    ("topk,overlap=off", "topk,overlap=on"): 60,
}
"""Methods that one command runs, and how many steps of each."""
METHODS = [name for group in GROUPS for name in group]
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
]
RUNS = {"concurrent": "concurrent", "replayed": "replayed", "floor": "concurrent"}
"""What a round runs, and the ``--execution`` of each."""
ORDERS = list(itertools.permutations(RUNS))
PHASES = ("compute", "compress", "communicate", "wait", "decompress", "optimizer", "other", "hidden")
LEVEL = 0.90
BAR_PERCENT = 5.0
DISTURBED = 0.15
"""Of a core: a run beside which other programs took more is thrown away, whatever it found."""


def measure(execution: str) -> dict[str, Any]:
    """For each method the slowest rank's step and, over its ranks and steps, the median of each phase; and the share of
    a core that other programs took meanwhile."""
    found: dict[str, Any] = {"cells": {}}
    began, everybody, own = time.monotonic(), _used_by_all(), _used_by_children()
    for names, count in GROUPS.items():
        document = netsim(*WORDS, *chosen(names, count), "--execution", execution)
        found["link"] = document["cells"][0]["link"]["mechanism"]
        for name, cell in zip(names, document["cells"], strict=True):
            steps = [step for rank in cell["repeats"][0]["ranks"] for step in rank["steps"]]
            found["cells"][name] = {
                "step_s": cell["summary"]["step_s"]["median"],
                **{f"{phase}_s": statistics.median(step[f"{phase}_s"] for step in steps) for phase in PHASES},
            }
            if cell["replay"] is not None:
                found["cells"][name]["replay"] = cell["replay"]
    others = (_used_by_all() - everybody) - (_used_by_children() - own)
    found["others"] = max(others, 0.0) / (time.monotonic() - began)
    return found


def _used_by_all() -> float:
    """Seconds of processor time that all processes of this machine have taken."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(map(int, words[1:4])) / os.sysconf("SC_CLK_TCK")  # user, nice, system


def _used_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def chosen(names: tuple[str, ...], count: int) -> list[str]:
    return ["--steps", str(count), *(word for name in names for word in ("--method", name))]


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
    rounds = kept["rounds"]
    machine = kept["environment"]
    cache = machine.get("l3_bytes")
    lines = [
        "# Replayed and concurrent agree",
        "",
        f"Made by `python reports/replay.py`, {len(rounds)} rounds on {machine['cpu']}, {machine['cores']} cores, "
        f"last-level cache {cache / 2**20:.0f} MiB"
        * bool(cache)
        + f", link {rounds[0]['concurrent']['link']}:",
        "",
        *(
            line
            for names, count in GROUPS.items()
            for line in (f"`netsim {' '.join([*WORDS, *chosen(names, count)])} --execution HOW`", "")
        ),
        "Each round runs it replayed and twice concurrently, in another order each time. A difference is that of two "
        "runs' median steps (the slowest rank's) within a round; the median over rounds, and its "
        f"{LEVEL:.0%} interval. The bar is {BAR_PERCENT:g}%. The last column is the second concurrent run against the "
        "first one: how well a run agrees with itself here. "
        f"{kept['thrown_away']} runs beside which other programs took more than {DISTURBED:g} of a core were thrown "
        "away and measured again.",
        "",
        "| method | concurrent, ms | replayed, ms | replayed - concurrent | 90% interval | concurrent - concurrent |",
        "|---|---|---|---|---|---|",
    ]
    for name in METHODS:
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
            f"{middles['concurrent']:.2f}",
            f"{middles['replayed']:.2f}",
            f"{statistics.median(ours):+.1f}%{bar}",
            f"{low:+.1f} to {high:+.1f}%",
            f"{statistics.median(floor):+.1f}% ({floor_low:+.1f} to {floor_high:+.1f}%)",
        ]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "Where the difference is, in ms: medians over ranks, steps and rounds.", ""]
    lines += [f"| method | run | {' | '.join(PHASES)} |", f"|---|---|{'---|' * len(PHASES)}"]
    for name in METHODS:
        for run in ("concurrent", "replayed"):
            cells = [each[run]["cells"][name] for each in rounds]
            figures = [1e3 * statistics.median(cell[f"{phase}_s"] for cell in cells) for phase in PHASES]
            lines.append(f"| {name} | {run} | {' | '.join(f'{value:.2f}' for value in figures)} |")
    played = [
        cell["replay"] for each in rounds for cell in each["replayed"]["cells"].values() if "replay" in cell
    ]
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
    commands = [[*WORDS, *chosen(names, count)] for names, count in GROUPS.items()]
    kept: dict[str, Any] = {"words": commands, "environment": environment(), "rounds": [], "thrown_away": 0}
    if FILE.exists() and not given.again:
        before = json.loads(FILE.read_text())
        if before["words"] == commands and before["environment"]["cpu"] == kept["environment"]["cpu"]:
            kept = before
    began, longest = time.monotonic(), 0.0
    for number in range(given.rounds):
        if number == len(kept["rounds"]):
            kept["rounds"].append({})
        for run in ORDERS[number % len(ORDERS)]:
            while run not in kept["rounds"][number]:
                started = time.monotonic()
                if started - began + longest > given.seconds:
                    sys.exit(
                        f"stopped in round {number + 1} of {given.rounds}: the same command goes on from here"
                    )
                measured = measure(RUNS[run])
                longest = max(longest, 1.2 * (time.monotonic() - started))
                if measured["others"] > DISTURBED:
                    kept["thrown_away"] += 1
                    print(
                        f"other programs took {measured['others']:.2f} of a core: once more", file=sys.stderr
                    )
                else:
                    kept["rounds"][number][run] = measured
                partial = FILE.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(kept, indent=1) + "\n")
                partial.replace(FILE)
    PAGE.write_text(page(kept))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
