"""What compressed gradients cost on the wire: measures, and prints the page beside this file.

python reports/wire.py > reports/wire.md     (a quarter of an hour; close other programs)
python reports/wire.py growth instruments    (those parts alone)

Draws reports/bytes.svg where matplotlib is installed (pip install 'netsim-ddp[report]').
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATES = ["10mbps", "100mbps", "1gbps"]
WORKERS = [2, 4, 8]
SHORT = ["--compute", "20ms", "--warmup", "1", "--repeats", "1"]
SPLIT_ROUNDS = 2  # entries to their owners, sums to all


def netsim(*words: str) -> dict[str, Any]:
    """One command's document; a probe that is off target answers one too."""
    print("netsim", *words, file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "netsim_ddp", *words, "--json", "-"],
        stdout=subprocess.PIPE,
        timeout=900,
        check=False,
    )
    if done.returncode not in (0, 4) or not done.stdout:
        sys.exit(f"netsim {' '.join(words)} ended with {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def methods(*names: str) -> list[str]:
    return [word for name in names for word in ("--method", name)]


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def sent_s(cell: dict[str, Any]) -> float:
    """Bytes / line rate of one step: what the busiest interface counted."""
    return float(cell["summary"]["tx_bytes_per_step"] * 8 / cell["link"]["configured_bps"])


def communicate_s(cell: dict[str, Any]) -> float:
    """The median step's, of the rank that took longest in each."""
    steps = zip(*(rank["steps"] for rank in cell["repeats"][0]["ranks"]), strict=True)
    return statistics.median(max(step["communicate_s"] for step in ranks) for ranks in steps)


def grid() -> None:
    print("""
## Communicate time against bytes / line rate

`netsim run --model simple_cnn --bandwidth RATE --workers P --compute 20ms` with `--method dense,overlap=off` and
`--method topk,collective=split,overlap=off`, 1,078,666 parameters: the slowest rank's communicate time, median of the
steps. "Bytes" is what the interface counted / its rate; a round is one exchange of 1 KiB between all ranks, as
`netsim probe --collectives` measures it on the same link. topk has two rounds; its bar is 1.5x (bytes + rounds),
that of dense 1.10x bytes at P <= 4.

| rate | P | dense, ms | bytes, ms | ratio | topk, ms | bytes, ms | round, ms | ratio |
|---|---|---|---|---|---|---|---|---|""")
    for workers in WORKERS:
        for rate in RATES:
            where = ["--bandwidth", rate, "--workers", str(workers), "--link", "tc"]
            probed = netsim("probe", *where, "--collectives")["collectives"]
            exchange = next(c for c in probed if c["operation"] == "exchange" and c["size_bytes"] == 1024)
            a_round = statistics.median(exchange["samples_s"])
            slow = ["--steps", "3" if rate == "10mbps" else "10"]
            dense = netsim("run", *where, *SHORT, *slow, *methods("dense,overlap=off"))["cells"][0]
            split = methods("topk,collective=split,overlap=off")
            topk = netsim("run", *where, *SHORT, "--steps", "20", *split)["cells"][0]
            took, least = communicate_s(dense), sent_s(dense)
            sparse, bound = communicate_s(topk), sent_s(topk) + SPLIT_ROUNDS * a_round
            cells = [f"{took * 1e3:.1f}", f"{least * 1e3:.1f}", f"{took / least:.3f}", f"{sparse * 1e3:.2f}"]
            cells += [f"{sent_s(topk) * 1e3:.2f}", f"{a_round * 1e3:.2f}", f"{sparse / bound:.2f}"]
            row(rate, workers, *cells)


def growth() -> None:
    print("""
## Bytes per worker

`netsim run --workers P --bandwidth 1gbps --compute 20ms --method topk,collective=split --method topk-allgather`,
simple_cnn, ratio 0.01: kB per step at the busiest interface, and what the formulas of a message of k entries say. See
[bytes.svg](bytes.svg), which goes on to 64 workers by formula.

| P | split-reduce | all-gather | 2 (P-1)/P k b | (P-1) k b |
|---|---|---|---|---|""")
    measured: list[tuple[int, float, float]] = []
    payload = 0.0
    for workers in range(2, 9):
        where = ["--bandwidth", "1gbps", "--workers", str(workers), *SHORT, "--steps", "3"]
        both = methods("topk,collective=split,overlap=off", "topk-allgather,overlap=off")
        split, gathered = netsim("run", *where, *both)["cells"]
        payload = gathered["summary"]["payload_bytes_per_step"] / (workers - 1)
        sizes = [cell["summary"]["tx_bytes_per_step"] for cell in (split, gathered)]
        measured.append((workers, sizes[0], sizes[1]))
        formulas = [2 * (workers - 1) / workers * payload, (workers - 1) * payload]
        row(workers, *(f"{size / 1e3:.1f}" for size in [*sizes, *formulas]))
    draw(measured, payload)


def draw(measured: list[tuple[int, float, float]], payload: float) -> None:
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


def instruments() -> None:
    print("""
## What the instruments cost

Two ranks train simple_cnn (topk, 1 thread each, no shaped link); every other step is timed and reported as in
`netsim run`, the others are bare. Medians of 400 steps of each kind on the slower rank. The bar is 1% of a step.

| bare, ms | instrumented, ms | difference | calls alone, us | of a step |
|---|---|---|---|---|""")
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
    row(
        f"{bare * 1e3:.3f}",
        f"{timed * 1e3:.3f}",
        f"{100 * (timed / bare - 1):+.2f}%",
        f"{calls * 1e6:.0f}",
        f"{100 * calls / bare:.2f}%",
    )


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


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := [word for word in wanted if word not in PARTS]:
        sys.exit(f"no part {unknown[0]!r}: {', '.join(PARTS)}")
    if not sys.argv[1:]:
        print("# What compressed gradients cost on the wire\n\nMade by `python reports/wire.py`.")
    for word in wanted:
        PARTS[word]()


if __name__ == "__main__":
    main()
