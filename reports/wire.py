"""What compressed gradients cost on the wire: measures, and writes wire.json and wire.md beside this file.

python reports/wire.py                       (a quarter of an hour; close other programs)
python reports/wire.py growth instruments    (those parts anew)
python reports/wire.py --again               (all parts anew)
python reports/wire.py --page                (only the page, from the file)

Draws reports/bytes.svg where matplotlib is installed (pip install 'netsim-ddp[report]').
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from form import keep, made_on, netsim, page, table

from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "wire.json", HERE / "wire.md"
RATES = ["10mbps", "100mbps", "1gbps"]
WORKERS = [2, 4, 8]
SHORT = ["--compute", "20ms", "--warmup", "1", "--repeats", "1", "--baseline", "none"]
SPLIT_ROUNDS = 2  # entries to their owners, sums to all
Row = dict[str, Any]


def methods(*names: str) -> list[str]:
    return [word for name in names for word in ("--method", name)]


def sent_s(cell: dict[str, Any]) -> float:
    """Bytes / line rate of one step: what the busiest interface counted."""
    return float(cell["summary"]["tx_bytes_per_step"] * 8 / cell["link"]["configured_bps"])


def communicate_s(cell: dict[str, Any]) -> float:
    """The median step's, of the rank that took longest in each."""
    steps = zip(*(rank["steps"] for rank in cell["repeats"][0]["ranks"]), strict=True)
    return statistics.median(max(step["communicate_s"] for step in ranks) for ranks in steps)


def grid() -> list[Row]:
    rows = []
    for workers in WORKERS:
        for rate in RATES:
            where = ["--bandwidth", rate, "--workers", str(workers), "--link", "tc"]
            probed = netsim("probe", *where, "--collectives")["collectives"]
            exchange = next(c for c in probed if c["operation"] == "exchange" and c["size_bytes"] == 1024)
            slow = ["--steps", "3" if rate == "10mbps" else "10"]
            dense = netsim("run", *where, *SHORT, *slow, *methods("dense,overlap=off"))["cells"][0]
            split = methods("topk,collective=split,overlap=off")
            topk = netsim("run", *where, *SHORT, "--steps", "20", *split)["cells"][0]
            rows.append(
                {
                    "rate": rate,
                    "workers": workers,
                    "round_s": statistics.median(exchange["samples_s"]),
                    **{
                        f"{name}_{what}": value
                        for name, cell in (("dense", dense), ("topk", topk))
                        for what, value in (
                            ("s", communicate_s(cell)),
                            ("bytes_s", sent_s(cell)),
                            ("limited", cell["link"]["host_limited"]),
                        )
                    },
                }
            )
    return rows


def growth() -> list[Row]:
    rows = []
    for workers in range(2, 9):
        where = ["--bandwidth", "1gbps", "--workers", str(workers), *SHORT, "--steps", "3"]
        both = methods("topk,collective=split,overlap=off", "topk-allgather,overlap=off")
        split, gathered = netsim("run", *where, *both)["cells"]
        rows.append(
            {
                "workers": workers,
                "split_bytes": split["summary"]["tx_bytes_per_step"],
                "gathered_bytes": gathered["summary"]["tx_bytes_per_step"],
                "message_bytes": gathered["summary"]["payload_bytes_per_step"] / (workers - 1),
            }
        )
    return rows


def draw(rows: list[Row]) -> None:
    payload = rows[-1]["message_bytes"]
    measured = [(row["workers"], row["split_bytes"], row["gathered_bytes"]) for row in rows]
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no matplotlib: the plot is not drawn", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "netsim", "font.size": 11}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    ranks = list(range(2, 65))
    curves = (
        ("split-reduce", "#0072b2", "o", 1, [2 * (p - 1) / p * payload for p in ranks]),
        ("all-gather", "#d55e00", "s", 2, [(p - 1) * payload for p in ranks]),
    )
    for name, colour, marker, column, formula in curves:
        axes.plot(ranks, [size / 1e3 for size in formula], color=colour, lw=1.5, label=f"{name}, formula")
        at = [point[column] / 1e3 for point in measured]
        axes.plot([p for p, *_ in measured], at, marker, color=colour, label=f"{name}, at the interface")
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="kB sent per worker and step")
    axes.set_xticks([2, 4, 8, 16, 32, 64], labels=["2", "4", "8", "16", "32", "64"])
    axes.set_yticks([50, 100, 200, 500, 1000, 2000], labels=["50", "100", "200", "500", "1000", "2000"])
    axes.minorticks_off()
    axes.set_title("Top-K at 1% of 1,078,666 parameters", loc="left")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(HERE / "bytes.svg", metadata={"Date": None})


def instruments() -> Row:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    store = HERE / f".store-{os.getpid()}"
    ranks = [context.Process(target=instrumented_rank, args=(rank, str(store), answers)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    try:
        found = [answers.get(timeout=300) for _ in ranks]
    finally:
        for rank in ranks:
            rank.join(10)
            rank.kill()
        store.unlink(missing_ok=True)
    bare, timed, calls = max(found)
    return {"bare_s": bare, "instrumented_s": timed, "calls_s": calls}


def instrumented_rank(rank: int, store: str, answers: Any) -> None:
    import socket
    import threading

    import torch
    import torch.distributed as dist

    from netsim_ddp.communication.building import build_method
    from netsim_ddp.communication.flat import FlatGradients
    from netsim_ddp.communication.segments import Group
    from netsim_ddp.communication.shaped.gloo_threads import spare_senders
    from netsim_ddp.ranks.channel import RankChannel
    from netsim_ddp.steps.execution import Concurrent
    from netsim_ddp.steps.phases import HostClock, StepTimer
    from netsim_ddp.steps.programs import Training
    from netsim_ddp.workloads.workload import build_workload

    class Bare(Concurrent):
        """The same pieces in the same order, and nothing else."""

        def step(self, play: Any) -> Any:
            play(self)

        def local(self, phase: Any, run: Any, work: Any = None) -> None:
            del phase, work
            run()

        def start(self, wire: Any) -> None:
            wire.start()

        def finish(self, wire: Any) -> None:
            wire.finish()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    spare_senders()
    ours, theirs = socket.socketpair()
    threading.Thread(
        target=lambda: [None for _ in iter(lambda: theirs.recv(65536), b"")], daemon=True
    ).start()
    channel = RankChannel(ours)
    heard = [True]

    def say(doing: str) -> None:
        if heard[0]:
            channel.progress(0, doing)

    workload = build_workload(rank=rank, world_size=2)
    flat = FlatGradients(workload.model.named_parameters())
    group = Group(rank, 2)
    optimizer = torch.optim.SGD(workload.model.parameters(), lr=0.01)
    program = Training(workload, build_method("topk", flat, group, ratio=0.01), group, optimizer, say)
    timed, bare = Concurrent(StepTimer(HostClock()), lambda: None), Bare(StepTimer(HostClock()), lambda: None)
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(840):
        heard[0] = number % 2 == 0
        program.prepare()
        dist.barrier()
        begin = time.perf_counter()
        (timed if heard[0] else bare).step(program.play)
        if number >= 40:
            took[heard[0]].append(time.perf_counter() - begin)
    heard[0] = True
    calls = cost_of_calls(StepTimer(HostClock()), say)
    answers.put((statistics.median(took[False]), statistics.median(took[True]), calls))
    dist.destroy_process_group()


def cost_of_calls(timer: Any, say: Any) -> float:
    """The instruments of one such step alone: one beginning, ten laps, two exchanges, two words to the command."""
    wires = [object(), object()]
    begin = time.perf_counter()
    for _ in range(2000):
        timer.begin()
        for wire in wires:
            timer.started(wire)
            timer.lap("send")
            timer.lap("wire", wire)
        for _ in range(6):
            timer.lap("compute")
        timer.finish()
        say("compute")
        say("communicate")
    return (time.perf_counter() - begin) / 2000


PARTS = {"grid": grid, "growth": growth, "instruments": instruments}


def grid_cells(row: Row) -> list[object]:
    dense, topk = row["dense_s"] / row["dense_bytes_s"], row["topk_s"] / bound_s(row)
    mark = {name: " (host-limited)" if row[f"{name}_limited"] else "" for name in ("dense", "topk")}
    return [
        row["rate"],
        row["workers"],
        f"{row['dense_s'] * 1e3:.1f}{mark['dense']}",
        f"{row['dense_bytes_s'] * 1e3:.1f}",
        f"{dense:.3f}",
        f"{row['topk_s'] * 1e3:.2f}{mark['topk']}",
        f"{row['topk_bytes_s'] * 1e3:.2f}",
        f"{row['round_s'] * 1e3:.2f}",
        f"{topk:.2f}",
    ]


def bound_s(row: Row) -> float:
    """Of split-reduce's exchange: its bytes at the line's rate, and its rounds."""
    return float(row["topk_bytes_s"] + SPLIT_ROUNDS * row["round_s"])


def growth_cells(row: Row) -> list[object]:
    others, message = row["workers"] - 1, row["message_bytes"]
    sizes = [
        row["split_bytes"],
        row["gathered_bytes"],
        2 * others / row["workers"] * message,
        others * message,
    ]
    return [row["workers"], *(f"{size / 1e3:.1f}" for size in sizes)]


def text(kept: dict[str, Any]) -> str:
    """The page."""
    rows, sizes, cost = kept["grid"], kept["growth"], kept["instruments"]
    open_rows = [row for row in rows if not row["dense_limited"]]
    dense = [row["dense_s"] / row["dense_bytes_s"] for row in open_rows if row["workers"] <= 4]
    over = [
        row["split_bytes"] / (2 * (row["workers"] - 1) / row["workers"] * row["message_bytes"])
        for row in sizes
    ]
    bare, timed, calls = cost["bare_s"], cost["instrumented_s"], cost["calls_s"]
    return page(
        "What compressed gradients cost on the wire",
        "How far is an exchange from its bytes at the line's rate, how many bytes does a worker send as workers are "
        "added, and what do the instruments add?",
        f"With up to four workers dense takes {min(dense):.3f} to {max(dense):.3f} times its bytes at the line's rate, "
        f"and split-reduce's bytes are {min(over):.2f} to {max(over):.2f} times its formula, headers included. The "
        f"calls of the instruments take {100 * calls / bare:.2f}% of a step of {bare * 1e3:.1f} ms.",
        [
            "## Communication against bytes / line rate",
            f"`netsim run --model simple_cnn --bandwidth RATE --workers P {' '.join(SHORT)}` with `--method "
            "dense,overlap=off` and `--method topk,collective=split,overlap=off`, 1,078,666 parameters: the slowest "
            'rank\'s communication, median of the steps. "Bytes" is what the interface counted / its rate; a round is '
            "one "
            "exchange of 1 KiB between all ranks, as `netsim probe --collectives` measures it on the same link. Dense "
            f"is held against its bytes, topk against its bytes and {SPLIT_ROUNDS} rounds.",
            table(
                [
                    "rate",
                    "P",
                    "dense, ms",
                    "bytes, ms",
                    "ratio",
                    "topk, ms",
                    "bytes, ms",
                    "round, ms",
                    "ratio",
                ],
                [grid_cells(row) for row in rows],
            ),
            "## Bytes per worker",
            f"`netsim run --workers P --bandwidth 1gbps {' '.join(SHORT)} --steps 3 --method "
            "topk,collective=split,overlap=off --method topk-allgather,overlap=off`, ratio 0.01: kB per step at the "
            "busiest interface, and what the formulas of a message of k entries of b bytes say. "
            "[bytes.svg](bytes.svg) goes on to 64 workers by formula.",
            table(
                ["P", "split-reduce", "all-gather", "2 (P-1)/P k b", "(P-1) k b"],
                [growth_cells(row) for row in sizes],
            ),
            "## What the instruments cost",
            "Two ranks train simple_cnn (topk, 1 thread each, no shaped link); every other step is timed and reported "
            "as in `netsim run`, the others are bare. Medians of 400 steps of each kind on the slower rank.",
            table(
                ["bare, ms", "instrumented, ms", "difference", "calls alone, us", "of a step"],
                [
                    [
                        f"{bare * 1e3:.3f}",
                        f"{timed * 1e3:.3f}",
                        f"{100 * (timed / bare - 1):+.2f}%",
                        f"{calls * 1e6:.0f}",
                        f"{100 * calls / bare:.2f}%",
                    ]
                ],
            ),
        ],
        [
            "`python reports/wire.py` (a quarter of an hour), or one of its parts: "
            f"{', '.join(f'`python reports/wire.py {part}`' for part in PARTS)}. What it measured is in "
            "[wire.json](wire.json).",
            f"Made on {made_on(kept['environment'], kept['commit'])}.",
        ],
        [
            "One run each: the ratios have no interval. Where a message takes half a millisecond, as topk's with two "
            "workers at 1 Gbit/s, the host's own scheduling is much of it, and another run gives another ratio.",
            "Rows that are host-limited say what two cores carry, and nothing of the link.",
            "The difference between timed and bare steps is smaller than their noise; only the calls by themselves are "
            "known.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"measured anew: {', '.join(PARTS)}")
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    given = parser.parse_args()
    if unknown := [word for word in given.parts if word not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: {', '.join(PARTS)}")
    kept: dict[str, Any] = {"environment": environment(), "commit": code_of([])[0].commit}
    if FILE.exists() and not given.again:
        kept = json.loads(FILE.read_text())
    if not given.page:
        for name, measure in PARTS.items():
            if name in given.parts or name not in kept:
                kept[name] = measure()
                keep(FILE, kept)
        draw(kept["growth"])
    PAGE.write_text(text(kept))


if __name__ == "__main__":
    main()
