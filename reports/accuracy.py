"""Which part of a method costs accuracy: the tables of pairs in accuracy.md, from the results beside this file.

python reports/accuracy.py [accuracy.json] [values.json]
"""

from __future__ import annotations

import sys
from pathlib import Path

from netsim_ddp.results.files import load
from netsim_ddp.results.record import Cell
from netsim_ddp.results.training import finished, mean_interval

PAIRS = (
    ("feedback off, on", {"feedback": False}, {"momentum": 0.9}),
    ("fp16, fp32 values", {"momentum": 0.9, "values": "fp16"}, {"momentum": 0.9}),
    ("int8, fp32 values", {"momentum": 0.9, "values": "int8"}, {"momentum": 0.9}),
)
RATIOS = (0.1, 0.01, 0.001)


def find(cells: list[Cell], workers: int, method: str, params: dict[str, object]) -> Cell | None:
    for cell in cells:
        ours = {key: value for key, value in cell.params.items() if key not in ("collective", "overlap")}
        if cell.workers == workers and cell.method == method and ours == params:
            return cell
    return None


def difference(one: Cell, other: Cell) -> str:
    """Points of the last epoch's validation accuracy, seed by seed, and their 95% t-interval."""
    ours, theirs = finished(one), finished(other)
    points = [
        100 * (mine.epochs[-1].validation_accuracy - their.epochs[-1].validation_accuracy)
        for seed, mine in ours.items()
        if (their := theirs.get(seed)) is not None
        if mine.epochs[-1].validation_accuracy is not None
        and their.epochs[-1].validation_accuracy is not None
    ]
    found = mean_interval(points)
    return f"{found.value:+.2f}" + (f" ± {found.half_width:.2f}" if found.count > 1 else "")


def main() -> None:
    for name in sys.argv[1:] or ["accuracy.json"]:
        table(list(load(Path(__file__).with_name(name)).cells))


def table(cells: list[Cell]) -> None:
    workers = sorted({cell.workers for cell in cells})
    print("| pair | method | ratio | " + " | ".join(f"P = {count}, points" for count in workers) + " |")
    print("|---" * (3 + len(workers)) + "|")
    for name, first, second in PAIRS:
        for method in ("topk", "topk-allgather"):
            for ratio in RATIOS:
                found = [
                    (
                        find(cells, count, method, {**first, "ratio": ratio}),
                        find(cells, count, method, {**second, "ratio": ratio}),
                    )
                    for count in workers
                ]
                texts = [difference(one, other) for one, other in found if one and other]
                if texts:
                    print(f"| {name} | {method} | {ratio} | " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
