"""How often netsim claims a difference that is not there, and how often it finds one that is.

python reports/false_claims.py            (three minutes; writes false-claims.md and false-claims.json beside this file)
python reports/false_claims.py --page     (only the page, from the file)

Samples are simulated, the rule is netsim's own: ``netsim_ddp.results.verdicts``, which every command judges by.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from form import keep, page

from netsim_ddp.results import verdicts
from netsim_ddp.results.stats import Estimate
from netsim_ddp.results.verdicts import ALPHA, FEWEST, FLOOR, Scores, Times, fastest_of, judge, repeats_needed

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "false-claims.json", HERE / "false-claims.md"
REPEATS = range(2, 11)
METHODS, RIVALS = 8, 3
NULL_TRIALS, POWER_TRIALS, FEW_TRIALS = 3_000, 250, 100


def without_interval(base: Sequence[float], new: Sequence[float]) -> Estimate:
    """The ratio alone: the ends of its interval tell "no change" from "inconclusive", and never decide a claim; the
    bootstrap takes most of the time."""
    return Estimate(median(new) / median(base), 0.0, math.inf, 0.0, min(len(base), len(new)))


verdicts.ratio_interval = without_interval

Noise = Callable[[np.random.Generator, int, int], np.ndarray]
"""(generator, cells, repeats) -> [cells, repeats] factors on the true time, in the order in which netsim measures."""


def lognormal(share: float) -> Noise:
    return lambda generator, cells, repeats: np.exp(generator.normal(0, share, (cells, repeats)))


def heavy(generator: np.random.Generator, cells: int, repeats: int) -> np.ndarray:
    """Student's t with two degrees: one repeat in ten is off by more than 9%."""
    return np.exp(np.clip(0.03 * generator.standard_t(2, (cells, repeats)), -1, 1))


def bursts(generator: np.random.Generator, cells: int, repeats: int) -> np.ndarray:
    """3%, and one repeat in eight meets another program: 10 to 60% longer."""
    hit = generator.random((cells, repeats)) < 1 / 8
    return lognormal(0.03)(generator, cells, repeats) * np.where(
        hit, generator.uniform(1.1, 1.6, hit.shape), 1
    )


def in_turns(series: np.ndarray, cells: int, repeats: int) -> np.ndarray:
    """A series over time as netsim meets it: repeats outermost, every other one backwards (ABBA)."""
    rows = series.reshape(repeats, cells).copy()
    rows[1::2] = rows[1::2, ::-1]
    return rows.T


def drift(generator: np.random.Generator, cells: int, repeats: int) -> np.ndarray:
    """3%, on a machine that gets 20% slower from the first measurement to the last."""
    slower = in_turns(np.linspace(1, 1.2, cells * repeats), cells, repeats)
    return lognormal(0.03)(generator, cells, repeats) * slower


def correlated(generator: np.random.Generator, cells: int, repeats: int) -> np.ndarray:
    """1%, on a machine whose speed wanders: 5%, with a correlation of 0.9 from one measurement to the next."""
    state = np.empty(cells * repeats)
    state[0] = generator.normal(0, 0.05)
    for i in range(1, len(state)):
        state[i] = 0.9 * state[i - 1] + math.sqrt(1 - 0.81) * generator.normal(0, 0.05)
    return lognormal(0.01)(generator, cells, repeats) * np.exp(in_turns(state, cells, repeats))


NOISES: dict[str, Noise] = {
    "log-normal 1%": lognormal(0.01),
    "log-normal 3%": lognormal(0.03),
    "log-normal 8%": lognormal(0.08),
    "log-normal 30%": lognormal(0.30),
    "heavy tails": heavy,
    "bursts": bursts,
    "drift 20%": drift,
    "wandering 5%": correlated,
}


def claimed(samples: Sequence[Sequence[float]], methods: int) -> tuple[bool, bool]:
    """Of rivals followed by ``methods`` methods: whether anything is claimed at all, and of the last one."""
    rival = samples[0]  # the named one; of the others a report gives factors and claims nothing
    judged = judge([Times(rival, method) for method in samples[len(samples) - methods :]])
    marked = fastest_of(samples, methods) is not None
    return marked or any(found.claimed for found in judged), judged[-1].claimed


def rate(noise: Noise, methods: int, rivals: int, repeats: int, change: float, trials: int) -> float:
    """The share of families that claim something (``change`` 0), or that claim the last method's true change."""
    generator = np.random.default_rng([methods, repeats, round(100 * change)])
    hits = 0
    for _ in range(trials):
        samples = noise(generator, rivals + methods, repeats)
        samples[-1] *= 1 + change
        anything, last = claimed(samples.tolist(), methods)
        hits += last if change else anything
    return hits / trials


def trainings(seeds: int, methods: int, trials: int) -> float:
    """Of equal methods on the same seeds: seeds differ by a point, trainings of one seed by half of one, with heavy
    tails; a loss follows its accuracy, with noise of its own."""
    generator = np.random.default_rng([9, methods, seeds])
    hits = 0
    for _ in range(trials):
        seed = generator.normal(0, 1, seeds)
        own = 0.5 * generator.standard_t(3, (methods + 1, seeds))
        accuracy = 98 + np.round(seed + own, 2)
        loss = 0.04 * np.exp(0.2 * (generator.standard_t(3, own.shape) - seed - own))
        floor = FLOOR * float(loss[0].mean())
        questions: list[Times | Scores] = []
        for one in range(1, methods + 1):
            questions.append(Scores(accuracy[0].tolist(), accuracy[one].tolist(), 0.28, more_is_better=True))
            questions.append(Scores(loss[0].tolist(), loss[one].tolist(), floor, more_is_better=False))
        hits += any(found.claimed for found in judge(questions))
    return hits / trials


def processes(files: int, between: float, trials: int) -> float:
    """pytest-benchmark: ten groups of rounds a process, 1% inside of one, ``between`` from process to process."""
    generator = np.random.default_rng([7, files, round(1000 * between)])
    hits = 0
    for _ in range(trials):
        sides = [
            np.exp(generator.normal(0, between, (files, 1)) + generator.normal(0, 0.01, (files, 10)))
            for _ in range(2)
        ]
        base, new = ([float(np.median(process)) for process in side] for side in sides)
        if files >= FEWEST:
            question = Times(base, new)
        else:
            question = Times(sides[0].ravel().tolist(), sides[1].ravel().tolist(), FLOOR, (base, new))
        hits += judge([question])[0].claimed
    return hits / trials


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---:"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%" if 0 < value < 0.1 else f"{100 * value:.0f}%"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    if parser.parse_args().page:
        PAGE.write_text(text(json.loads(FILE.read_text())))
        return
    found: dict[str, Any] = {"alpha": ALPHA, "floor": FLOOR, "trials": NULL_TRIALS, "rows": []}
    for name, noise in NOISES.items():
        for methods, rivals in ((1, 1), (METHODS, RIVALS)):
            print(name, methods, "x", rivals, file=sys.stderr)
            for repeats in REPEATS:
                shape = (noise, methods, rivals, repeats)
                trials = NULL_TRIALS if repeats >= FEWEST else FEW_TRIALS
                power = POWER_TRIALS if repeats >= FEWEST else FEW_TRIALS
                found["rows"].append(
                    {
                        "noise": name,
                        "methods": methods,
                        "rivals": rivals,
                        "repeats": repeats,
                        "false_claims": rate(*shape, 0.0, trials),
                        "power_10_percent": rate(*shape, 0.1, power),
                        "power_20_percent": rate(*shape, 0.2, power),
                    }
                )
    found["trainings"] = [
        {"methods": methods, "seeds": seeds, "false_claims": trainings(seeds, methods, NULL_TRIALS // 3)}
        for methods in (1, 3, 7)
        for seeds in (*REPEATS,)
    ]
    found["benchmarks"] = [
        {"files": files, "between": between, "false_claims": processes(files, between, NULL_TRIALS)}
        for between in (0.01, 0.02, 0.03)
        for files in (1, 2, 3, 4, 5, 7)
    ]
    keep(FILE, found)
    PAGE.write_text(text(found))


def text(found: dict[str, Any]) -> str:
    parts = []
    for methods, rivals in ((1, 1), (METHODS, RIVALS)):
        for key, what in (
            (
                "false_claims",
                "false claims: the share of families of equal methods in which anything is claimed",
            ),
            (
                "power_10_percent",
                "power: how often a method that is really 10% slower is claimed to be slower",
            ),
            ("power_20_percent", "power: the same for 20%"),
        ):
            rows = []
            for name in NOISES:
                values = [
                    row[key] for row in found["rows"] if (row["noise"], row["methods"]) == (name, methods)
                ]
                rows.append([name, *map(percent, values)])
            head = ["noise \\ repeats", *map(str, REPEATS)]
            parts.append(f"### {methods} x {rivals}, {what}\n\n{table(head, rows)}")
    worst = max(row["false_claims"] for row in found["rows"])
    trained = table(
        ["methods \\ seeds", *map(str, REPEATS)],
        [
            [str(m), *(percent(r["false_claims"]) for r in found["trainings"] if r["methods"] == m)]
            for m in (1, 3, 7)
        ],
    )
    benchmarks = table(
        ["between processes \\ files a side", *(str(n) for n in (1, 2, 3, 4, 5, 7))],
        [
            [percent(b), *(percent(r["false_claims"]) for r in found["benchmarks"] if r["between"] == b)]
            for b in (0.01, 0.02, 0.03)
        ],
    )
    needs = ", ".join(f"{m}: {repeats_needed(m)}" for m in (1, 6, 7, 8, 23, 24, 70))
    return page(
        "Claims that are false, and differences that are missed",
        "How often does netsim call a method faster or slower where nothing differs, and how often does it miss a real "
        "difference?",
        f"The worst of all rows below claims something in {percent(worst)} of families in which nothing differs. A "
        f"method that is really 10% slower is found by seven repeats in {percent(power(found, 'log-normal 3%'))} of "
        f"cases at 3% noise and in {percent(power(found, 'log-normal 8%'))} at 8%.",
        [
            f"{found['trials']} families a figure from five repeats on, {FEW_TRIALS} below, {POWER_TRIALS} for the "
            "power. A standard error is 0.4 points at 5%, up to 3 points of the power.",
            "A difference is claimed with at least five repeats a side, an exact rank test that Holm's correction "
            f"brings to at most {ALPHA:.0%} over all comparisons that are printed together, and beyond {FLOOR:.0%}. 1 "
            f"x 1 is one method and its rival; {METHODS} x {RIVALS} is {METHODS} methods beside {RIVALS} baselines, of "
            "which one is the "
            f'named rival: {METHODS} comparisons. The mark "(fastest)" counts as a claim. Repeats that a claim needs, '
            "by "
            f"the number of comparisons: {needs}.",
            "Noise: log-normal; *heavy tails* (Student's t with two degrees, 3%); *bursts* (3%, one repeat in eight 10 "
            "to 60% longer); *drift* (3%, the machine 20% slower at the end than at the start); *wandering* (1%, the "
            "machine's speed by 5% with a correlation of 0.9 from one measurement to the next), the last two in "
            "netsim's own order, ABBA. At 30% the floor does nothing, and the test is alone.",
            *parts,
            "## Trainings",
            "Accuracy and loss of each method beside dense's of the same seeds, by the smaller of two exact p-values "
            "counted twice (rank sums, signed ranks of the pairs): the share of families of equal methods in which any "
            "is called better or worse.",
            trained,
            "## Files of pytest-benchmark",
            "Equal code on both sides, 1% noise inside a process. With one file a side the rule cannot hold its level, "
            "whatever it does: a claim there speaks of these two processes, which `netsim compare` says first. Two to "
            "four files a side have to be apart by more than the floor even at their closest; from five on the "
            "processes themselves are tested.",
            benchmarks,
        ],
        [
            "`python reports/false_claims.py` (three minutes), by netsim's own rule "
            "([verdicts.py](../netsim_ddp/results/verdicts.py)). Every share is in "
            "[false-claims.json](false-claims.json)."
        ],
        [
            "Real machines: samples are simulated, and a machine may be disturbed in ways that none of these is.",
            "Whether two runs at different times differ: the rule speaks of one run.",
        ],
    )


def power(found: dict[str, Any], noise: str) -> float:
    """Of one method and its rival, seven repeats, 10%."""
    (row,) = (row for row in found["rows"] if (row["noise"], row["methods"], row["repeats"]) == (noise, 1, 7))
    return float(row["power_10_percent"])


if __name__ == "__main__":
    main()
