"""Is what ``netsim advise`` recommends the fastest? Five recorded trainings on three links, every candidate measured.

python reports/advise.py               (about an hour; writes advise.json and advise.md beside this file)
python reports/advise.py --again       (measures anew what an earlier call has measured)
python reports/advise.py --quick       (one training, one link, no file: whether everything runs)

Each training is recorded here by ``netsim record``, advice is asked for, and then every candidate whose predicted step
is at most 1.5 times the fastest one's is measured by ``netsim run``, in other processes than those of the advice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from form import keep, made_on, page, table

from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "advise.json", HERE / "advise.md"
TRAINING = HERE.parent / "tests" / "fixtures" / "own_training.py"
MODELS = ("mlp", "simple_cnn", "transformer", "resnet18-small", "resnet18")
LINKS = (("50mbps", "0ms", "tc"), ("1gbps", "0ms", "tc"), ("200mbps", "20ms", "bucket"))
"""Rate, delay and what makes the link. A delay is the bucket's: without the kernel's netem two cores do not carry it
for four workers (tun.md)."""
WORKERS = 4
CLOSE = 1.5
"""Candidates predicted to take so many times the fastest one's step are not measured."""
BAR = 0.03
Row = dict[str, Any]


def netsim(*words: str) -> None:
    """Run a command of netsim; what it says goes to stderr.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, "-m", "netsim_ddp", *words], check=True, stdout=sys.stderr)


def record(model: str, path: Path) -> None:
    steps = "12" if model == "resnet18" else "30"
    netsim(
        "record",
        "-o",
        str(path),
        "--steps",
        "8",
        "--",
        sys.executable,
        str(TRAINING),
        "--model",
        model,
        "--steps",
        steps,
    )


def name_of(link: tuple[str, str, str]) -> str:
    return " + ".join(each for each in link[:2] if each != "0ms")


def asked(recording: Path, link: tuple[str, str, str], time: str, repeats: int, folder: Path) -> Row:
    """One row: what was recommended, and what every candidate really takes."""
    here = (
        "--recording",
        str(recording),
        "--workers",
        str(WORKERS),
        "--bandwidth",
        link[0],
        "--delay",
        link[1],
        "--link",
        link[2],
    )
    advice_file, run_file = folder / "advice.json", folder / "run.json"
    netsim("advise", *here, "--time", time, "--json", str(advice_file))
    advice = json.loads(advice_file.read_text())
    fastest = min(each["predicted_s"] for each in advice["candidates"])
    close = [each for each in advice["candidates"] if each["predicted_s"] <= CLOSE * fastest]
    ids = dict.fromkeys([advice["recommended"], *(each["id"] for each in close)])
    methods = [word for each in ids for word in ("--method", each)]
    netsim(
        "run",
        *here,
        "--baseline",
        "none",
        "--repeats",
        str(repeats),
        "--steps",
        "10",
        *methods,
        "--json",
        str(run_file),
    )
    cells = json.loads(run_file.read_text())["cells"]
    measured = {
        name: {key: cell["summary"]["step_s"][key] for key in ("median", "ci_low", "ci_high")}
        for name, cell in zip(ids, cells, strict=True)
        if cell["summary"]
    }
    best = min(measured, key=lambda name: float(measured[name]["median"]))
    return {
        "link": name_of(link),
        "mechanism": link[2],
        "recommended": advice["recommended"],
        "verdict": advice["verdict"],
        "expected_s": advice["step_s"],
        "measured_s": measured,
        "best": best,
        "behind": measured[advice["recommended"]]["median"] / measured[best]["median"] - 1,
        "load": os.getloadavg()[0],
    }


def said_so(row: Row) -> bool:
    """Whether the interval of the advice holds the best method's step."""
    best = row["measured_s"][row["best"]]["median"]
    return bool(row["expected_s"]["ci_low"] <= best <= row["expected_s"]["ci_high"])


def text(document: dict[str, Any]) -> str:
    """The page."""
    rows, machine = document["rows"], document["environment"]
    good, loads = sum(row["behind"] <= BAR for row in rows), [row["load"] for row in rows]
    worst = max(row["behind"] for row in rows)
    return page(
        "Does netsim advise recommend the fastest method?",
        "Is the method that `netsim advise` recommends for a training and a link the one whose measured step is the "
        "shortest?",
        f"In {good} of {len(rows)} cases{missing(rows)} the recommended method's step is within {BAR:.0%} of the "
        f"fastest candidate's; in the worst it is {worst:.1%} behind. Where it is further behind, the last column says "
        "whether the advice's own interval said so.",
        [
            f"{WORKERS} workers, replayed; {document['repeats']} repeats of 10 steps of each candidate whose predicted "
            f"step is within {CLOSE:g} times the fastest; advice with `--time {document['time']}`. In brackets the "
            "range of the repeats, and the advice's own interval. With a delay the link is the bucket.",
            table(
                [
                    "training",
                    "link",
                    "recommended",
                    "its step, ms",
                    "expected, ms",
                    "fastest",
                    "its step, ms",
                    "behind",
                    "interval holds it",
                ],
                [cells(row) for row in rows],
            ),
        ],
        [
            "`python reports/advise.py` (an hour). Every step is in [advise.json](advise.json).",
            f"Made on {made_on(machine, document.get('commit'))}; load {min(loads):.1f} to {max(loads):.1f} while it "
            "ran.",
        ],
        [
            "Other machines, GPUs, and more workers than a host carries.",
            "One version of netsim: a call measures what is missing, by the code of its day; the commit is the last's.",
            "Accuracy.",
        ],
    )


def missing(rows: list[Row]) -> str:
    """How many cases are not measured yet, in words."""
    left = len(MODELS) * len(LINKS) - len(rows)
    return f" ({left} of {left + len(rows)} are not measured yet)" if left else ""


def cells(row: Row) -> list[object]:
    return [
        row["model"],
        f"{row['link']}, {row['mechanism']}",
        f"`{row['recommended']}`",
        interval(row["measured_s"][row["recommended"]]),
        interval(row["expected_s"]),
        f"`{row['best']}`",
        interval(row["measured_s"][row["best"]]),
        f"{row['behind']:.1%}",
        "yes" if said_so(row) else "no",
    ]


def interval(step: dict[str, float]) -> str:
    """Milliseconds: the median, and from where to where."""
    median, low, high = (f"{step[key] * 1e3:.4g}" for key in ("median", "ci_low", "ci_high"))
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--time", default="60s", help="of each advice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(text(json.loads(FILE.read_text())))
        return
    models, links = (MODELS[:1], LINKS[:1]) if options.quick else (MODELS, LINKS)
    rows: list[Row] = []
    if FILE.exists() and not options.again and not options.quick:
        rows = json.loads(FILE.read_text())["rows"]
    document: dict[str, Any] = {
        "command": "python reports/advise.py",
        "time": options.time,
        "repeats": options.repeats,
        "environment": environment(),
        "commit": code_of([])[0].commit,
        "rows": rows,
    }
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            recording = Path(folder) / f"{model}.netsim"
            for link in links:
                name = name_of(link)
                if any(row["model"] == model and row["link"] == name for row in rows):
                    continue
                if not recording.exists():
                    record(model, recording)
                row = asked(recording, link, options.time, options.repeats, Path(folder))
                rows.append({"model": model, **row})
                print(
                    f"{model} {name}: {row['recommended']}, {row['behind']:.1%} behind {row['best']}",
                    flush=True,
                )
                if not options.quick:
                    keep(FILE, document)
                    PAGE.write_text(text(document))


if __name__ == "__main__":
    main()
