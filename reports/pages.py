"""The tables of README, docs and this folder, filled from result files: nothing is measured.

A fenced block below the line ``<!-- netsim report reports/crossover.json -->`` is what that command prints at 80
columns, from the checkout's root; ``<!-- 100 columns: netsim ... -->`` at as many. A table below
``<!-- python reports/accuracy.py -->`` is what that prints. ``python reports/figures.py --tables`` fills all.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("reports/*.md"))]
BLOCK = re.compile(
    r"^<!-- (?:(?P<columns>\d+) columns: )?(?P<command>netsim [^\n]*?) -->\n+```\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TABLE = re.compile(r"^<!-- (?P<command>python reports/[^\n]*?) -->\n+(?P<text>(?:\|.*\n)+)", re.MULTILINE)
READING = ("netsim report", "netsim compare", "netsim show", "python reports/accuracy.py")
"""The commands that measure nothing."""
EXPORTS = {
    "reports/accuracy.html": "netsim report reports/accuracy.json --html {}",
    "reports/crossover.html": "netsim report reports/crossover.json --html {}",
    "docs/images/resnet50-8-workers-1gbps.svg": "netsim report reports/headline-resnet50.json --figures {} --format "
    "svg",
}
"""Files that a command writes; a folder of figures has one."""


def export(command: str, target: Path) -> None:
    """Run ``command``, whose ``{}`` is where it writes, and put what it wrote at ``target``."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "written"
        words = shlex.split(command.format(place))
        subprocess.run([sys.executable, "-m", "netsim_ddp", *words[1:]], cwd=ROOT, check=True, timeout=300)
        if place.is_dir():
            (place,) = place.glob("*.svg")
        shutil.copyfile(place, target)


def output(command: str, columns: int = 80) -> str:
    """What ``command`` prints on a terminal of that width.

    Raises:
        ValueError: it may measure.
    """
    words = shlex.split(command)
    if " ".join(words[:2]) not in READING:
        raise ValueError(f"`{command}`: a page's table comes from {', '.join(READING)}")
    done = subprocess.run(
        [sys.executable, *(["-m", "netsim_ddp"] if words[0] == "netsim" else []), *words[1:]],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines()) + "\n"


def filled(text: str) -> str:
    """``text`` of a page with each block as its command prints it now."""

    def block(found: re.Match[str]) -> str:
        head = found[0][: found.start("text") - found.start()]
        return f"{head}{output(found['command'], int(found['columns'] or 80))}```"

    def table(found: re.Match[str]) -> str:
        return found[0][: found.start("text") - found.start()] + output(found["command"])

    return TABLE.sub(table, BLOCK.sub(block, text))
