"""Writes the reference pages beside this file from the registry and the command line: ``make reference``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from netsim_ddp.cli import app
from netsim_ddp.report.reference import methods_page

HERE = Path(__file__).parent
WIDTH = 100


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    """Every command below ``group``, in the order of its help."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, f"{prefix}{name} ")
        else:
            yield prefix + name


def help_of(command: str) -> str:
    """What ``netsim COMMAND --help`` prints on a terminal of ``WIDTH`` columns."""
    words = [sys.executable, "-m", "netsim_ddp", *command.split(), "--help"]
    environment = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def commands_page() -> str:
    parts = [
        "# Commands and their flags\n\nWhat `netsim COMMAND --help` prints, collected by `make reference`.\n"
    ]
    parts += [
        f"## netsim {command}\n\n```\n{help_of(command).strip()}\n```\n"
        for command in commands(get_command(app))
    ]
    return "\n".join(parts)


PAGES = {"methods.md": methods_page, "commands.md": commands_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"wrote {HERE / name}")
