"""Whether a recording's samples of gradients stand for whole ones: measures, and writes samples.json and samples.md.

python reports/samples.py            (five minutes; close other programs)
python reports/samples.py --page     (only the page, from the file)

Each training is tests/fixtures/own_training.py, recorded twice by ``netsim record``: with whole gradients, and with the
samples that it keeps by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from form import keep, made_on, netsim, page, table

from netsim_ddp.results.recording_file import read
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "samples.json", HERE / "samples.md"
TRAINING = HERE.parent / "tests" / "fixtures" / "own_training.py"
MODELS = ("resnet18-small", "resnet18", "transformer")
METHODS = ("topk-allgather,overlap=off", "topk,collective=split,overlap=off")
ROUNDS = 5
Row = dict[str, Any]


def record(model: str, kind: str, target: Path) -> float:
    """Record a training of ``model``; returns the share of its gradients' entries that were kept."""
    words = ["record", "--gradients", kind, "-o", str(target), "--", sys.executable, str(TRAINING)]
    subprocess.run(
        [sys.executable, "-m", "netsim_ddp", *words, "--model", model, "--batch-size", "4"],
        cwd=target.parent,
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        check=True,
        timeout=600,
    )
    recording = read(target)
    return sum(recording.gradients.kept) / sum(each.numel for each in recording.parameters)


def local(recording: Path) -> dict[str, dict[str, float]]:
    """Of each method the payload of a step and the time of its compression, done here as one of two ranks."""
    asked = [word for name in METHODS for word in ("--method", name)]
    found = netsim("predict", "--recording", str(recording), "--workers", "2", "--baseline", "none", *asked)
    return {
        cell["method"]: {
            "payload_bytes": cell["summary"]["payload_bytes_per_step"],
            "compress_s": median(step["compress_s"] for step in cell["repeats"][0]["ranks"][0]["steps"]),
        }
        for cell in found["cells"]
        if cell["method"] != "dense"
    }


def measured(model: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.netsim" for kind in ("full", "sampled")}
        kept = {kind: record(model, kind, target) for kind, target in files.items()}
        rounds = [{kind: local(target) for kind, target in files.items()} for _ in range(ROUNDS)]
    return {"model": model, "kept": kept["sampled"], "rounds": rounds}


def difference(rounds: list[dict[str, Any]], method: str, figure: str) -> list[float]:
    """Of the samples' figure to the whole gradients', in percent, round by round."""
    return [100 * (each["sampled"][method][figure] / each["full"][method][figure] - 1) for each in rounds]


def spread(values: list[float]) -> str:
    return f"{median(values):+.1f}% ({min(values):+.1f}..{max(values):+.1f})"


def text(kept: dict[str, Any]) -> str:
    """The page."""
    rows: list[Row] = kept["rows"]
    names = ("topk-allgather", "topk")
    payload = [median(difference(row["rounds"], name, "payload_bytes")) for row in rows for name in names]
    took = [median(difference(row["rounds"], name, "compress_s")) for row in rows for name in names]
    return page(
        "Samples of gradients, played as whole ones",
        "A recording below 50 MB keeps samples of a large model's gradients: do gradients rebuilt from them cost as "
        "many bytes and as much time to compress as whole ones?",
        f"Payloads differ by {min(payload):+.1f}% to {max(payload):+.1f}%, by model and method, and the time of "
        f"compression by {min(took):+.1f}% to {max(took):+.1f}% in the median of {ROUNDS} rounds. Each is Top-K at 1%, "
        "done as one of two ranks.",
        [
            table(
                [
                    "model",
                    "kept",
                    *(f"{name}, payload" for name in names),
                    *(f"{name}, compression" for name in names),
                ],
                [
                    [
                        row["model"],
                        f"{row['kept']:.0%}",
                        *(
                            spread(difference(row["rounds"], name, figure))
                            for figure in ("payload_bytes", "compress_s")
                            for name in names
                        ),
                    ]
                    for row in rows
                ],
            ),
        ],
        [
            "`python reports/samples.py` (five minutes): each training is recorded by `netsim record --gradients full` "
            "and by `--gradients sampled`, and `netsim predict --recording` compresses both in turns. Every round is "
            "in [samples.json](samples.json); medians, with the lowest and the highest.",
            f"Made on {made_on(kept['environment'], kept['commit'])}.",
        ],
        [
            "Accuracy: nothing is trained with rebuilt gradients.",
            "Models of which a file keeps less than the least of these shares. `tests/test_reconstruction.py` holds "
            "the payload of one, of which a third is kept, to 2%.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    if not parser.parse_args().page:
        kept = {"environment": environment(), "commit": code_of([])[0].commit}
        keep(FILE, kept | {"rows": [measured(model) for model in MODELS]})
    PAGE.write_text(text(json.loads(FILE.read_text())))


if __name__ == "__main__":
    main()
