"""What a step takes with netsim's backend and hook, and with what else users register with DDP: in turns, on one link.

python reports/peers.py                (an hour and a half; writes peers.json and peers.md beside this file)
python reports/peers.py --again        (forgets what was measured before, by the same commit and settings)
python reports/peers.py --page         (only the page, from the file)
python reports/peers.py --workers 8 --repeats 1 --rounds 2 --methods none,backend,hook,hook+views
                                       (about a minute; some methods alone write no file)

Needs what ``netsim launch`` needs. Each repeat is a launch of reports/peers_worker.py, in which the methods take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from form import keep, made_on, page

from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE, WORKER = HERE / "peers.json", HERE / "peers.md", HERE / "peers_worker.py"
NAMES = {
    "none": "no communication",
    "nothing": "DDP, a hook that sends nothing",
    "ddp": "DDP, dense fp32",
    "fp16": "DDP, torch's fp16 hook",
    "bf16": "DDP, torch's bf16 hook",
    "powersgd": "DDP, torch's PowerSGD hook, rank 2",
    "flat": "flat torch.topk and all-gather",
    "backend": "DistributedBackend, topk",
    "hook": "topk_hook",
}
PEERS = ("ddp", "fp16", "bf16", "powersgd", "flat")
VARIANTS = {"views": "views", "onebucket": "one bucket", "batched": "batched", "overlap": "overlap"}
DEFAULT = (
    "none,nothing,nothing+views,ddp,ddp+views,fp16,fp16+views,bf16,bf16+views,"
    "powersgd,powersgd+views,powersgd+batched,powersgd+batched+views,flat,backend,hook,hook+views,hook+overlap,hook+overlap+views"
)
HEAD = (
    "method | variant | step, ms | x backend | less none, ms | CPU, ms | CPU less none, x backend | sent, MB "
    "| call, ms"
)
Turn = dict[str, Any]
"""``step_ms`` and ``call_ms`` of each step, on the slowest rank; ``cpu_ms``, the ranks' mean; ``sent_bytes`` of the
rank that sent most."""
Round = dict[str, Turn]
Figure = Callable[[Round], float]


def launch(given: argparse.Namespace, workers: int, repeat: int) -> dict[str, Any]:
    """One launch of the worker on ``workers`` ranks: what the methods took, and what other programs took of a core."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(WORKER), "--methods", *given.methods, "--folder", folder]
        for name, value in (("rounds", given.rounds), ("steps", given.steps), ("width", given.width)):
            words += [f"--{name}", str(value)]
        words += ["--first", str(repeat * given.rounds % len(given.methods))]
        link = ["launch", "--workers", str(workers), "--bandwidth", given.bandwidth]
        began, everybody, own = time.monotonic(), used_by_all(), used_by_children()
        done = subprocess.run(
            [sys.executable, "-m", "netsim_ddp", *link, "--", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdout=2,  # standard output has the page
            check=False,
        )
        if done.returncode:
            sys.exit(done.returncode)  # the command has said why
        others = (used_by_all() - everybody) - (used_by_children() - own)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(workers)]
        share = max(others, 0.0) / (time.monotonic() - began)
    turns = {name: map(reduced, zip(*(rank[name] for rank in ranks), strict=True)) for name in given.methods}
    rounds = [dict(zip(turns, each, strict=True)) for each in zip(*turns.values(), strict=True)]
    return {"others": round(share, 2), "rounds": rounds}


def used_by_all() -> float:
    """Seconds of processor time that all processes of this machine have taken."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(map(int, words[1:4])) / os.sysconf("SC_CLK_TCK")  # user, nice, system


def used_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reduced(ranks: tuple[dict[str, Any], ...]) -> Turn:
    """What a method's turn came to, from the ranks' own records of it."""
    found: Turn = {}
    for key in ("step", "call"):
        steps = zip(*(rank[f"{key}_s"] for rank in ranks), strict=True)
        found[f"{key}_ms"] = [round(1e3 * max(step), 2) for step in steps]
    found["cpu_ms"] = round(1e3 * statistics.mean(rank["cpu_s"] for rank in ranks), 2)
    found["sent_bytes"] = round(max(rank["sent_bytes"] for rank in ranks))
    return found


def over(launches: list[list[Round]], figure: Figure) -> tuple[float, float, float]:
    """The median over a repeat's rounds: median, smallest and largest of the repeats."""
    values = [statistics.median(map(figure, rounds)) for rounds in launches]
    return statistics.median(values), min(values), max(values)


def of(name: str, key: str) -> Figure:
    return lambda turns: statistics.median(value if isinstance(value := turns[name][key], list) else [value])


def less(name: str, key: str) -> Figure:
    """Above no communication, in the same round."""
    return lambda turns: of(name, key)(turns) - of("none", key)(turns)


def ratio(above: Figure, below: Figure) -> Figure:
    return lambda turns: above(turns) / (below(turns) or math.nan)


def titled(name: str) -> tuple[str, str]:
    method, *variants = name.split("+")
    return NAMES[method], ", ".join(VARIANTS[variant] for variant in variants)


def row(launches: list[list[Round]], name: str) -> str:
    turns = [turns[name] for rounds in launches for turns in rounds]
    longest = max(max(turn["call_ms"]) for turn in turns)
    call = f"{over(launches, of(name, 'call_ms'))[0]:.1f}, at most {longest:.1f}"

    def cell(figure: Figure, form: str, *beside: str) -> str:
        """``617 (601..640)``, one number where the repeats agree in it, - where what stands beside it is missing."""
        if not {*beside} <= launches[0][0].keys():
            return "-"
        middle, low, high = (format(value, form) for value in over(launches, figure))
        return middle if low == high else f"{middle} ({low}..{high})"

    cells = [
        *titled(name),
        cell(of(name, "step_ms"), ".0f"),
        cell(ratio(of(name, "step_ms"), of("backend", "step_ms")), ".2f", "backend"),
        cell(less(name, "step_ms"), ".0f", "none"),
        cell(of(name, "cpu_ms"), ".0f"),
        cell(ratio(less(name, "cpu_ms"), less("backend", "cpu_ms")), ".2f", "backend", "none"),
        f"{over(launches, of(name, 'sent_bytes'))[0] / 1e6:.2f}",
        call if longest else "-",
    ]
    return f"| {' | '.join(cells)} |"


def table(launches: list[list[Round]]) -> str:
    lines = [f"| {HEAD} |", "|---|---|" + "---|" * (HEAD.count("|") - 1)]
    return "\n".join([*lines, *(row(launches, name) for name in launches[0][0])])


def fastest(launches: list[list[Round]], method: str) -> str | None:
    """The variant of ``method`` whose step is the shortest."""
    names = [name for name in launches[0][0] if name.split("+")[0] == method]
    return min(names, key=lambda name: over(launches, of(name, "step_ms"))[0], default=None)


def answer(workers: str, launches: list[list[Round]]) -> str:
    """In two sentences, of the methods that were measured."""

    def times(name: str, rival: str) -> str:
        return f"{over(launches, ratio(of(name, 'step_ms'), of(rival, 'step_ms')))[0]:.2f}x"

    known, said = launches[0][0], []
    if {"hook", "hook+views", "backend"} <= set(known):
        said.append(
            f"With {workers} ranks a step under `topk_hook` takes {times('hook', 'backend')} as long as one with "
            f"`DistributedBackend`, and {times('hook+views', 'backend')} where DDP has views."
        )
    peers = [best for method in PEERS if (best := fastest(launches, method))]
    if peers and (hook := fastest(launches, "hook")):
        names = [f"{' with '.join(filter(None, titled(best)))} {times(best, hook)}" for best in peers]
        said.append(f"Beside the hook's fastest variant, the peers' fastest ones take: {'; '.join(names)}.")
    return " ".join(said)


def added(launches: list[list[Round]]) -> str:
    """What the exchange alone adds to a step: above no communication, and under DDP above a hook that sends nothing."""
    if not {"none", "nothing", "nothing+views", "backend", "hook", "hook+views"} <= launches[0][0].keys():
        return ""

    def above(name: str, base: str) -> Figure:
        return lambda turns: of(name, "step_ms")(turns) - of(base, "step_ms")(turns)

    own, hook, views = (
        above(*pair) for pair in (("backend", "none"), ("hook", "nothing"), ("hook+views", "nothing+views"))
    )
    ms = [f"{over(launches, figure)[0]:.0f}" for figure in (own, hook, views)]
    shares = [f"{over(launches, ratio(figure, own))[0]:.2f}x" for figure in (hook, views)]
    return (
        f"The exchange alone adds {ms[0]} ms to a step with the backend (above no communication), {ms[1]} ms with the "
        f"hook (above DDP with a hook that sends nothing), {shares[0]}, and {ms[2]} ms with views, {shares[1]}; ratios "
        "are those of the same rounds."
    )


QUESTION = (
    "How long is a step of the DDP script that people have, and what does it cost the processor, with each way of "
    "averaging gradients that they can paste into it?"
)
READING = """A step is the slowest rank's, from `zero_grad()` to the average in every parameter's gradient; with it the
smallest and the largest of the repeats. Ratios and differences are those of turns in the same round, and
every figure is the median over a repeat's rounds, then over repeats. CPU is that of a rank's process, all
threads, per step. "Sent" is the qdisc's count at the busiest rank's interface, with all headers. A call
is the longest of a step's hook calls but the last one, on the slowest rank: the median step's, then the
longest of all.

A hook that sends nothing gives DDP its bucket back at once: what is above no communication there is DDP's own, copies
into its buckets and back, and every hook's step has it; the backend's, without DDP, has not.

Views: `gradient_as_bucket_view=True`. Batched: `batch_tensors_with_same_shape=True`. Overlap: `TopKState(...,
overlap=True)`. Buckets are DDP's default ones; PowerSGD has one bucket, since with several torch's hook starts
all-reduces in another order on each rank, which Gloo does not survive, and starts in the third step
(`start_powerSGD_iter=2`, warm start). The flat selection is thirty lines without DDP: one `torch.topk`, 8 bytes an
entry. Ratio 0.01, fp32 values."""
REPEAT = """```
python reports/peers.py    # all of it, in more than an hour; goes on where it was stopped
python reports/peers.py --workers 8 --repeats 1 --rounds 2 --methods none,backend,hook,hook+views
```

The second line is a look in a minute or two, and only prints. `+views`, `+overlap`, `+onebucket` and `+batched` make
variants. Each repeat is one `netsim launch --workers P --bandwidth RATE`, one thread a rank; in each round every
method has its turn, in rotated order, with a model, a DDP and a state of its own, and three steps that are not
measured. Every turn is in [peers.json](peers.json)."""
MISSING = (
    "Hosts of their own. Ranks run at once, so with fewer cores than ranks a method pays for the work of all of them: "
    "on hosts of their own the dense baselines gain on the methods that compute.",
    "A real backward pass. This one only writes gradients, normal numbers that are independent between ranks, so there "
    "is little to overlap with, and a real model's step is longer by its computation on every row.",
    "An optimizer, and accuracy.",
)


def text(kept: dict[str, Any]) -> str:
    """The page."""
    machine, settings = kept["environment"], kept["settings"]
    in_order = sorted(kept["launches"].items(), key=lambda item: int(item[0]))
    by_workers = {workers: [each["rounds"] for each in found] for workers, found in in_order}
    others = [each["others"] for found in kept["launches"].values() for each in found]
    made = (
        f"Made on {made_on(machine, kept['commit'])}; {settings['bandwidth']}, repeats of {settings['rounds']} rounds "
        f"of {settings['steps']} steps. Other programs took {statistics.median(others):.2f} of a core meanwhile in the "
        f"median launch, at most {max(others):.2f}."
    )
    blocks = []
    for workers, launches in by_workers.items():
        blocks += [f"## {workers} ranks, repeats: {len(launches)}", table(launches)]
        blocks += [more] if (more := added(launches)) else []
    return page(
        "netsim's hook and backend beside the peers, in a user's own DDP script",
        QUESTION,
        answer(*list(by_workers.items())[-1]),
        [*blocks, "## How to read it", *READING.split("\n\n")],
        [*REPEAT.split("\n\n"), made],
        MISSING,
    )


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", default="2,4,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of a turn, after three that are not measured")
    parser.add_argument("--bandwidth", default="1gbps")
    parser.add_argument(
        "--methods", default=DEFAULT, help="those alone, such as backend,hook+views, and no file: %(default)s"
    )
    parser.add_argument(
        "--width", type=int, default=64, help="of the ResNet's first layer: 8 has 3%% of the parameters"
    )
    parser.add_argument("--print-only", action="store_true", help="write no file")
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument(
        "--quick", action="store_true", help="whether everything runs: two ranks, a small model, no file"
    )
    given = parser.parse_args(words)
    if given.quick:
        given.workers, given.repeats, given.rounds, given.steps, given.width = "2", 1, 1, 2, 8
        given.bandwidth, given.print_only = "100mbps", True  # which a busy machine carries too
    given.print_only |= given.methods != DEFAULT
    given.workers, given.methods = [int(word) for word in given.workers.split(",")], given.methods.split(",")
    for name in given.methods:
        method, *variants = name.split("+")
        if method not in NAMES or not set(variants) <= set(VARIANTS):
            parser.error(f"no method {name!r}: {', '.join(NAMES)}, each with any of +{', +'.join(VARIANTS)}")
    return given


def main(words: list[str] | None = None) -> None:
    given = arguments(words)
    settings = {key: getattr(given, key) for key in ("bandwidth", "rounds", "steps", "methods", "width")}
    if given.page:
        PAGE.write_text(text(json.loads(FILE.read_text())))
        return
    kept = {
        "environment": environment(),
        "commit": code_of([])[0].commit,
        "settings": settings,
        "launches": {},
    }
    if FILE.exists() and not given.again and not given.print_only:
        before = json.loads(FILE.read_text())
        if (before["settings"], before["commit"]) == (settings, kept["commit"]):
            kept = before
    if not given.quick:  # compiled once, before eight ranks would do it at the same time
        warm = "from netsim_ddp.compression.kernels import warm; warm()"
        subprocess.run([sys.executable, "-c", warm], check=True)
    for repeat in range(given.repeats):
        for workers in given.workers:
            found = kept["launches"].setdefault(str(workers), [])
            if len(found) > repeat:
                continue
            found.append(launch(given, workers, repeat))
            if not given.print_only:
                keep(FILE, kept)
                PAGE.write_text(text(kept))
    print(text(kept))


if __name__ == "__main__":
    main()
