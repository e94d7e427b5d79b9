"""What recording a training costs, and how near a recorded step that is played on a link comes to the training itself.

python reports/recorded.py            (half an hour on two cores; writes recorded.json and recorded.md beside this file)
python reports/recorded.py --again    (forgets what was measured before; else the same command goes on where it stopped)
python reports/recorded.py --page     (only the page, from the file)
python reports/recorded.py --quick    (whether everything runs: small models and few steps, no file)

The training is tests/fixtures/own_training.py, which knows nothing of a recorder and has a clock of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from form import keep, made_on, page, table

from netsim_ddp.results.files import load
from netsim_ddp.results.recording import Recording
from netsim_ddp.results.recording_file import read_gradients
from netsim_ddp.results.stats import ratio_interval
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "recorded.json", HERE / "recorded.md"
SCRIPT = HERE.parent / "tests" / "fixtures" / "own_training.py"
TRAININGS = {
    "ResNet-18, no DDP": ["--model", "resnet18-small"],
    "transformer, no DDP": ["--model", "transformer"],
    "ResNet-18, DDP on 2 ranks": ["--model", "resnet18-small", "--batch-size", "4", "--ddp"],
    "ResNet-18, DDP, own hook, 2 passes a step": [
        *("--model", "resnet18-small", "--batch-size", "4", "--ddp", "--hook", "--accumulate", "2"),
    ],
}
PLAYED = ["--model", "resnet18-small", "--batch-size", "4", "--ddp"]
QUICK = {"mlp, no DDP": ["--model", "mlp"], "mlp, DDP": ["--model", "mlp", "--ddp", "--hook"]}
METHODS = {"dense": ([], "dense,overlap=on"), "fp16 hook": (["--fp16"], "fp16,overlap=on")}
RATES = ("100mbps", "1gbps")
ALONE, THERE = "without a link", "on this link"
DEADLINE_S = 1200.0
WARM_UP = 3
Row = dict[str, Any]


def netsim(folder: Path, *words: str) -> None:
    """Run a command in ``folder``; what it says on standard error is shown."""
    print("netsim", *words, file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-m", "netsim_ddp", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
        stdout=2,
        check=True,
        timeout=DEADLINE_S,
    )


def program(options: Sequence[str], steps: int, out: Path | None = None) -> list[str]:
    """The training's command line: under torchrun where it is distributed."""
    start = [sys.executable]
    if "--ddp" in options:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*start, str(SCRIPT), *options, "--steps", str(steps), *(["--out", str(out)] if out else [])]


def overhead(options: Sequence[str], steps: int) -> Row:
    """One training twice, unwatched and watched: whether both ended with the same bits, what watching cost, and how far
    the recording's moments are from the script's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = 3 + 2 * steps + 3 + 1
        plain = program(options, count, folder / "plain")
        print(*plain, file=sys.stderr, flush=True)
        subprocess.run(
            plain,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
            stdout=2,
            check=True,
            timeout=DEADLINE_S,
        )
        netsim(
            folder,
            *("record", "-o", "r.netsim", "--steps", str(steps), "--"),
            *program(options, count, folder / "watched"),
        )
        recording, _ = read_gradients(folder / "r.netsim")
        log = json.loads((folder / "watched-0.json").read_text())
        ranks = range(2 if "--ddp" in options else 1)
        same = all(_same(folder / f"plain-{rank}.pt", folder / f"watched-{rank}.pt") for rank in ranks)
    assert recording.overhead is not None
    return {
        "same": same,
        "on_s": recording.overhead.on_s,
        "off_s": recording.overhead.off_s,
        "off_by": moments_off(recording, log),
    }


def _same(one: Path, other: Path) -> bool:
    left, right = (torch.load(each, weights_only=True) for each in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


def steps_of(log: Sequence[Sequence[Any]]) -> list[dict[str, float]]:
    """What the script noted, by step: of each name the last moment."""
    begins = [place for place, (name, _) in enumerate(log) if name.startswith("step")]
    return [
        {"step" if name.startswith("step") else name: moment for name, moment in log[here:after]}
        for here, after in pairwise([*begins, len(log)])
    ]


def moments_off(recording: Recording, log: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Of each kind of moment the median of how far it lies from the script's own, as a share of the step."""
    own = steps_of(log)
    apart: dict[str, list[float]] = {}
    for step in recording.ranks[0].steps:
        # A recorded step begins where the optimizer's step before it ended.
        theirs, begin, last = own[step.number], own[step.number - 1]["end"], step.passes[-1]
        at = {"forward": last.forward_s, "backward": last.backward_s, "after": last.end_s, "end": step.end_s}
        at |= {f"bucket {number}": full for number, full in enumerate(step.full_s) if full is not None}
        for name, moment in at.items():
            if name in theirs:
                kind = "buckets" if name.startswith("bucket") else name
                off = begin + moment - theirs[name]
                apart.setdefault(kind, []).append(abs(off) / (theirs["end"] - begin))
    return {kind: statistics.median(each) for kind, each in apart.items()}


def launched(folder: Path, options: Sequence[str], rate: str, steps: int) -> float:
    """The training's own step under ``netsim launch``, by its own clock: the median of the slower rank's, without the
    first ones, in which DDP rebuilds its buckets."""
    out = folder / "own"
    netsim(
        folder,
        *("launch", "--workers", "2", "--bandwidth", rate, "--"),
        *(sys.executable, str(SCRIPT), *options, "--steps", str(steps + WARM_UP), "--out", str(out)),
    )
    lengths = []
    for rank in range(2):
        begins = [
            moment
            for name, moment in json.loads(Path(f"{out}-{rank}.json").read_text())
            if name.startswith("step")
        ]
        lengths.append([after - begin for begin, after in pairwise(begins)][WARM_UP:])
    return max(statistics.median(each) for each in lengths)


def played(folder: Path, recording: str, method: str, rate: str, steps: int) -> float:
    netsim(
        folder,
        *("run", "--recording", recording, "--workers", "2", "--bandwidth", rate, "--method", method),
        *("--baseline", "none", "--execution", "concurrent", "--link", "tc", "--repeats", "1"),
        *("--steps", str(steps), "--json", "run.json"),
    )
    [cell] = [
        cell
        for cell in load(folder / "run.json").cells
        if cell.id.startswith(method.split(",")[0]) and cell.overlap
    ]
    assert cell.summary is not None
    return float(cell.summary.step_s.median)


def pair(options: Sequence[str], method: str, rate: str, steps: int, repeats: int, there: bool) -> Row:
    """Launched and played in turns, of one recording. ``there``: it was made on the same link, by ``netsim launch``."""
    row: Row = {"launched_s": [], "played_s": []}
    count = 3 + 2 * steps + 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if there:
            netsim(
                folder,
                *("launch", "--workers", "2", "--bandwidth", rate, "--record", "r.netsim"),
                *("--record-steps", str(steps), "--"),
                *(sys.executable, str(SCRIPT), *options, "--steps", str(count)),
            )
        else:
            netsim(
                folder, *("record", "-o", "r.netsim", "--steps", str(steps), "--"), *program(options, count)
            )
        for number in range(repeats):
            turns: list[tuple[str, Callable[[], float]]] = [
                ("launched_s", lambda: launched(folder, options, rate, steps)),
                ("played_s", lambda: played(folder, "r.netsim", method, rate, steps)),
            ]
            for key, turn in turns if number % 2 == 0 else reversed(turns):
                row[key].append(turn())
    return row


def spread(values: Sequence[float]) -> str:
    middle, low, high = (
        f"{1e3 * each:.4g}" for each in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low}..{high})"


def text(kept: dict[str, Any]) -> str:
    """The page."""
    loads = [row["load_1min"] for rows in (kept["overhead"], kept["pairs"]) for row in rows.values()]
    return page(
        "Recording a training, and playing it",
        "What does it cost to watch a training, and does a recorded step that `netsim run` plays on a link take as "
        "long as the training itself on that link?",
        answer(kept),
        [
            "## Watching",
            "Steps with the recorder's clock on and off take turns in one process (under DDP, in each of two). The "
            "interval is that of the ratio of medians, 95%. *Moments* is how far what the recording says lies from the "
            "script's own clock, the median of each kind as a share of the step, the largest of them; *same bits* "
            "compares the parameters at the end with those of the training unwatched.",
            table(
                ["training", "watched, ms", "not, ms", "watching costs", "moments", "same bits"],
                [watching_cells(name, row) for name, row in kept["overhead"].items()],
            ),
            "## Playing",
            f"`own_training.py {' '.join(PLAYED)}` on two ranks of one thread: recorded, then launched "
            "(`netsim launch`, timed by its own clock) and played (`netsim run --recording`, concurrent) on the same "
            "link in turns; the slower rank's median step of each run.",
            table(
                [
                    "link",
                    "method",
                    "recorded",
                    "launched, ms",
                    "played, ms",
                    "played / launched, by turn",
                    "of the medians",
                ],
                [playing_cells(name, row) for name, row in kept["pairs"].items()],
            ),
        ],
        [
            "`python reports/recorded.py` (half an hour). Every step is in [recorded.json](recorded.json).",
            f"Made on {made_on(kept['environment'], kept.get('commit'))}; load {min(loads):.1f} to {max(loads):.1f} "
            "before each row.",
        ],
        [
            "A GPU, more than two ranks, a link with delay, and methods that compress: what they cost beside a "
            "backward pass on the same cores is not in a recording.",
            "Why played steps differ at 1 Gbit/s. Two ranks have both cores at work here, and the packets of the "
            "exchange take from these: a recording that was made without a link has nothing of that in its moments, "
            "and one that was made on the link has it in its moments and again as it is played. The launched step of "
            "1 Gbit/s lies between the two, which fits; packets were not measured apart.",
        ],
    )


def watching_cells(name: str, row: Row) -> list[object]:
    found = ratio_interval(row["off_s"], row["on_s"])
    costs = f"{found.value - 1:+.1%} ({found.low - 1:+.1%}..{found.high - 1:+.1%})"
    same = "yes" if row["same"] else "NO"
    return [
        name,
        spread(row["on_s"]),
        spread(row["off_s"]),
        costs,
        f"{max(row['off_by'].values()):.2%}",
        same,
    ]


def playing_cells(name: str, row: Row) -> list[object]:
    turns = ", ".join(f"{b / a:.2f}" for a, b in zip(row["launched_s"], row["played_s"], strict=True))
    return [*name.split(", "), spread(row["launched_s"]), spread(row["played_s"]), turns, f"{ratio(row):.3f}"]


def ratio(row: Row) -> float:
    return statistics.median(row["played_s"]) / statistics.median(row["launched_s"])


def answer(kept: dict[str, Any]) -> str:
    costs = [ratio_interval(row["off_s"], row["on_s"]) for row in kept["overhead"].values()]
    said = []
    if costs:
        low, high = min(each.value - 1 for each in costs), max(each.value - 1 for each in costs)
        told = sum(each.low > 1 for each in costs)
        said.append(
            f"Watching cost {low:+.1%} to {high:+.1%} of a step; {told} of {len(costs)} can be told from nothing."
        )
    if kept["pairs"]:
        of = {
            where: [ratio(row) for name, row in kept["pairs"].items() if name.endswith(where)]
            for where in (ALONE, THERE)
        }
        told = [
            f"{min(found):.2f} to {max(found):.2f} (recorded {where})" for where, found in of.items() if found
        ]
        said.append(f"A played step takes {' and '.join(told)} of the launched one.")
    return " ".join(said)


def save(kept: dict[str, Any]) -> None:
    keep(FILE, kept)
    PAGE.write_text(text(kept))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12, help="watched, and launched or played in each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--quick", action="store_true", help="whether everything runs; no file")
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    given = parser.parse_args(arguments)
    if given.page:
        PAGE.write_text(text(json.loads(FILE.read_text())))
        return
    trainings, base, rates = TRAININGS, PLAYED, RATES
    if given.quick:
        given.steps, given.repeats, trainings, base, rates = 3, 1, QUICK, QUICK["mlp, DDP"][:3], RATES[1:]
    settings = {"steps": given.steps, "repeats": given.repeats}
    kept: dict[str, Any] = {
        "settings": settings,
        "environment": environment(),
        "commit": code_of([])[0].commit,
        "overhead": {},
        "pairs": {},
    }
    if FILE.exists() and not given.again and not given.quick:
        before = json.loads(FILE.read_text())
        if before["settings"] == settings and before["environment"]["cpu"] == kept["environment"]["cpu"]:
            kept = before

    def add(part: str, name: str, make: Callable[[], Row]) -> None:
        if name in kept[part]:
            return
        load_1min = os.getloadavg()[0]
        kept[part][name] = {**make(), "load_1min": load_1min}
        if not given.quick:
            save(kept)

    for name, options in trainings.items():
        add("overhead", name, lambda options=options: overhead(options, given.steps))  # type: ignore[misc]
    for where, there in ((ALONE, False), (THERE, True)):
        for rate in rates[1:] if there and not given.quick else rates:  # at the slow one both agree already
            for title, (more, method) in METHODS.items():
                add(
                    "pairs",
                    f"{rate}, {title}, {where}",
                    lambda more=more, method=method, rate=rate, there=there: pair(  # type: ignore[misc]
                        [*base, *more], method, rate, given.steps, given.repeats, there
                    ),
                )
    print(text(kept))


if __name__ == "__main__":
    main()
