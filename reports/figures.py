"""Measures the published figures again, one report after the other, and fills the pages' tables from the files.

python reports/figures.py                    (all that this version has not measured yet: hours)
python reports/figures.py crossover wire     (these, measured already or not)
python reports/figures.py --list             (what there is, how long it takes, what is measured)
python reports/figures.py --tables           (no measurement: only the tables in README, docs and this folder)

Each report is measured by itself, on a machine with nothing else to do: a load above 0.3 is waited for, and then
refused unless --noisy is given. What is measured is noted in figures.json with the load, and with what others took of a
virtual machine's processors meanwhile. Break off at any time: what is complete stays, a sweep goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pages import EXPORTS, PAGES, ROOT, export, filled

from netsim_ddp import __version__
from netsim_ddp.results import files, prediction_errors, repeatability
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
NOTES, PARTIAL = HERE / "figures.json", HERE / ".partial"
LONGEST_S = 24 * 3600.0
LOAD, WAIT_S = 0.3, 300.0
"""Of the last minute, at most; and how long it may take to fall to that after what was measured before."""
TABLE = re.compile(r"^\| page \| question .*\n(?:\|.*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Figure:
    """One measurement that is published.

    Attributes:
        question: what it answers.
        page: where it is shown, in this folder.
        commands: that measure it, from the checkout's root; ``netsim`` is this environment's.
        minutes: about how long they take on two cores.
        timed: it needs a machine with nothing else to do; simulations and counted bytes do not.
    """

    question: str
    page: str
    commands: tuple[str, ...]
    minutes: int
    timed: bool = True


HEADLINE = (
    "netsim run --model resnet50 --compute 50ms --workers 8 --bandwidth 1gbps --repeats 7 --steps 5 --warmup 1"
    " --method dense,overlap=off --method fp16 --method powersgd,rank=2 --method topk-allgather --method topk"
    " --method topk,values=fp16 --method topk,overlap=off --json reports/"
)
CROSSOVER = "netsim sweep crossover --json reports/"
FIGURES = {
    "default-run": Figure(
        "what does the first command of README print?",
        "../README.md",
        ("netsim run --bandwidth 1gbps --ratio 0.01 --json reports/default-run.json",),
        1,
    ),
    "headline": Figure(
        "what does a step of ResNet-50 take at 1 Gbit/s?",
        "headline-resnet50.md",
        (f"{HEADLINE}headline-resnet50.json",),
        20,
    ),
    "crossover": Figure(
        "over which bandwidths does compression pay?",
        "crossover.md",
        (f"{CROSSOVER}crossover.json",),
        10,
    ),
    "validation": Figure(
        "how far are predicted steps from measured ones?",
        "validation.md",
        (
            "netsim sweep validation --set repeats=1 --set steps=5 --set warmup=1"
            " --json reports/validation-measured.json",
            "netsim sweep validation --set execution=concurrent --set threads=1 --set repeats=1 --set steps=5"
            " --set warmup=1 -k 'workers=2 and not resnet18' --json reports/validation-concurrent.json",
            "netsim predict --validate reports/validation-measured.json"
            " --validate reports/validation-concurrent.json --json reports/validation.json",
        ),
        25,
    ),
    "link": Figure("how true is the emulated link?", "link.md", ("python reports/link.py",), 12),
    "wire": Figure(
        "what do compressed gradients cost on the wire?", "wire.md", ("python reports/wire.py",), 15
    ),
    "replay": Figure(
        "do replayed and concurrent steps agree?", "replay.md", ("python reports/replay.py",), 15
    ),
    "compress": Figure(
        "how long does the codec take?",
        "compress.md",
        (
            "netsim bench compress --sizes 25557032 --ratios 0.01,0.001 --threads 1,2 --rounds 5"
            " --inputs normal,recorded,equal,zeros,sorted,heavy --json reports/compress.json",
        ),
        10,
    ),
    "growth": Figure(
        "how many workers does one host hold, and what does each cost?",
        "growth.md",
        ("python reports/growth.py",),
        25,
    ),
    "tcp": Figure("does the bucket's TCP agree with the kernel's?", "tcp.md", ("python reports/tcp.py",), 30),
    "tun": Figure("what do packets delayed in user space carry?", "tun.md", ("python reports/tun.py",), 10),
    "peers": Figure(
        "how long is a step of a user's own DDP script with netsim's hook, its backend, and what else people register?",
        "peers.md",
        ("python reports/peers.py --workers 2,4,8 --repeats 3 --rounds 2 --steps 5",),
        50,
    ),
    "recorded": Figure(
        "what does recording a training cost, and does a played step take as long as the training's?",
        "recorded.md",
        ("python reports/recorded.py",),
        30,
    ),
    "samples": Figure(
        "do samples of gradients stand for whole ones?", "samples.md", ("python reports/samples.py",), 5
    ),
    "advise": Figure(
        "does netsim advise recommend the fastest method?", "advise.md", ("python reports/advise.py",), 60
    ),
    "accuracy": Figure(
        "what does compression cost in accuracy?",
        "accuracy.md",
        ("netsim sweep accuracy --json reports/accuracy.json", "python reports/accuracy.py"),
        240,
        timed=False,
    ),
    "coverage": Figure(
        "how often does a break-even's interval hold the truth?",
        "coverage.md",
        ("python reports/interval_coverage.py",),
        20,
        timed=False,
    ),
    "false-claims": Figure(
        "how often is a difference claimed where there is none?",
        "false-claims.md",
        ("python reports/false_claims.py",),
        20,
        timed=False,
    ),
    "headline-again": Figure(
        "does another hour give the same headline?",
        "headline-resnet50.md",
        (f"{HEADLINE}headline-resnet50-again.json",),
        20,
    ),
    "crossover-again": Figure(
        "does another hour give the same crossover?",
        "crossover.md",
        (f"{CROSSOVER}crossover-again.json",),
        10,
    ),
}


class Refused(Exception):
    """Not measured, and why."""


def wait_until_quiet(noisy: bool) -> float:
    """Returns the load of the last minute, below :data:`LOAD` unless ``noisy``."""
    deadline = time.monotonic() + WAIT_S
    while (load := os.getloadavg()[0]) > LOAD and not noisy:
        if time.monotonic() > deadline:
            raise Refused(f"load {load:.1f}, which does not fall to {LOAD}: close other programs, or --noisy")
        time.sleep(5)
    return load


def ticks() -> tuple[int, int]:
    """Of all processors since the machine started: all, and those that its host gave to others."""
    with open("/proc/stat", encoding="ascii") as file:
        every = [int(word) for word in file.readline().split()[1:9]]
    return sum(every), every[7]


def run(command: str, again: bool) -> None:
    """Run one command from the checkout's root. Its ``--json`` file takes its place when it is complete."""
    words, place = shlex.split(command), None
    if words[0] == "netsim":
        words[:1] = [sys.executable, "-m", "netsim_ddp"]
        if "--json" in words:
            at = words.index("--json") + 1
            place, words[at] = ROOT / words[at], str(PARTIAL / Path(words[at]).name)
            if again:
                Path(words[at]).unlink(missing_ok=True)
    else:
        words[0] = sys.executable
        if again and "--again" in Path(words[1]).read_text():
            words.append("--again")
    print("$", command, flush=True)
    done = subprocess.run(words, cwd=ROOT, check=False, timeout=LONGEST_S)
    if done.returncode:
        raise Refused(f"`{command}` ended with {done.returncode}")
    if place is not None:
        partial = Path(words[words.index("--json") + 1])
        compact(partial, command)
        partial.replace(place)


def compact(path: Path, command: str) -> None:
    """Rewrite a result file as small as it can be read, numbers to seven digits and without spaces; and with
    ``command`` as the one that made it, which names no folder of this machine."""

    def short(value: object) -> object:
        if isinstance(value, float):
            return float(f"{value:.7g}")
        if isinstance(value, list):
            return [short(each) for each in value]
        return {key: short(each) for key, each in value.items()} if isinstance(value, dict) else value

    document = json.loads(path.read_text()) | {"command": command}
    path.write_text(json.dumps(short(document), separators=(",", ":")) + "\n")


def measure(name: str, noisy: bool) -> None:
    """Measure one figure, and note it."""
    figure, notes = FIGURES[name], noted()
    load = wait_until_quiet(noisy or not figure.timed)
    begun, code = PARTIAL / f"{name}.begun", code_of([])[0]
    PARTIAL.mkdir(exist_ok=True)
    here = f"{code.commit} {figure.commands}"
    again = not begun.exists() or begun.read_text() != here
    begun.write_text(here)
    began, (all_before, stolen_before) = time.monotonic(), ticks()
    for command in figure.commands:
        run(command, again)
    all_after, stolen_after = ticks()
    found = environment()
    notes[name] = {
        "commands": list(figure.commands),
        "ended_utc": datetime.now(UTC).isoformat(timespec="minutes"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "load_1min": round(load, 2),
        "stolen": round((stolen_after - stolen_before) / max(all_after - all_before, 1), 4),
        "commit": code.commit,
        "version": __version__,
        "cpu": found["cpu"],
        "cores": found["cores"],
    }
    NOTES.write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
    begun.unlink()


def noted() -> dict[str, Any]:
    return dict(json.loads(NOTES.read_text())) if NOTES.exists() else {}


def listed() -> str:
    """The table of README.md in this folder."""
    rows = ["| page | question | made by | measured |", "|---|---|---|---|"]
    for name, figure in FIGURES.items():
        note = noted().get(name)
        said = "not by this version"
        if note is not None:
            said = (
                f"{note['ended_utc'][:10]}, netsim {note['version']}, {note['cores']} cores, {note['minutes']:g} min, "
                f"load {note['load_1min']:g}, {note['stolen']:.1%} taken by others"
            )
        shown = figure.page.removeprefix("../")
        made = ", ".join(f"`{command}`" for command in figure.commands)
        if (HERE / figure.page).exists():
            shown = f"[{shown}]({figure.page})"
        rows.append(f"| {shown} | {figure.question} | {made} | {said} |")
    return "\n".join(rows)


def fill_tables() -> None:
    """Write what has changed."""
    for path in PAGES:
        text = path.read_text()
        now = filled(text)
        if path == HERE / "README.md":
            now = TABLE.sub(lambda _: f"{listed()}\n", now)
        if now != text:
            path.write_text(now)
            print("filled", path.relative_to(ROOT))
    for name, command in EXPORTS.items():
        export(command, ROOT / name)
    prediction_errors.OWN.write_text(validated())
    repeatability.OWN.write_text(repeatable())


def validated() -> str:
    """What every prediction says of its error, from the validation's file."""
    found = prediction_errors.load(HERE / "validation.json").model_copy(
        update={"source": "netsim's own, reports/validation.md"}
    )
    return json.dumps(found.model_dump(mode="json"), indent=1) + "\n"


def repeatable() -> str:
    """How far another run's step may be from a measured one, from the cells of the validation that were measured at two
    hours."""
    pairs = [
        (files.load(HERE / f"{name}-earlier.json"), files.load(HERE / f"{name}.json"))
        for name in ("validation-measured", "validation-concurrent")
    ]
    found = repeatability.repeatability(pairs, "netsim's own, reports/validation.md")
    return json.dumps(found.model_dump(mode="json"), indent=1) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--list", action="store_true", help="what there is; measures nothing")
    parser.add_argument("--tables", action="store_true", help="only fill the pages' tables; measures nothing")
    parser.add_argument(
        "--noisy", action="store_true", help="measure on a machine that does other things, too"
    )
    given = parser.parse_args(words)
    for name in given.names:
        if name not in FIGURES:
            parser.error(f"no figure {name!r}: {', '.join(FIGURES)}")
    if given.list:
        for name, figure in FIGURES.items():
            note = noted().get(name)
            print(
                f"{name:16} {figure.minutes:4} min  {note['ended_utc'] if note else '-':17} {figure.question}"
            )
        return
    if not given.tables:
        wanted = given.names or [name for name in FIGURES if not measured_now(name)]
        for name in wanted:
            try:
                measure(name, given.noisy)
            except Refused as why:
                sys.exit(f"{name}: {why}")
            fill_tables()
    fill_tables()


def measured_now(name: str) -> bool:
    """Whether the notes have it, by the command and the version of now."""
    note = noted().get(name)
    return note is not None and (note["commands"], note["version"]) == (
        list(FIGURES[name].commands),
        __version__,
    )


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # head has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
