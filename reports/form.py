"""The form of every page in this folder: question, answer in two sentences, tables, how to repeat it, what it does not
show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netsim_ddp import __version__

INNERMOST = re.compile(r"\{[^{}\[\]]*\}|\[[^{}\[\]]*\]")
PARTS = ("**Question.** ", "**Answer.** ", "## How to repeat it", "## What it does not show")


def page(
    title: str,
    question: str,
    answer: str,
    tables: Sequence[str],
    repeat: Sequence[str],
    missing: Sequence[str],
) -> str:
    """A page's text.

    Args:
        repeat: paragraphs; the first one is the command.
        missing: what the figures do not show, a bullet each.
    """
    asked, answered, again, blind = PARTS
    parts = [
        f"# {title}",
        f"{asked}{question}",
        f"{answered}{answer}",
        *tables,
        again,
        *repeat,
        blind,
        "\n".join(f"- {each}" for each in missing),
    ]
    return "\n\n".join(_wrapped(part.strip("\n")) for part in parts) + "\n"


def _wrapped(part: str) -> str:
    """At 120 columns, but for what has lines of its own."""
    if part.startswith(("|", "#", "```")):
        return part
    lines = part.split("\n") if part.startswith("- ") else [" ".join(part.split())]
    wrap = textwrap.TextWrapper(120, break_on_hyphens=False, break_long_words=False)
    wrap.subsequent_indent = "  " if part.startswith("- ") else ""
    return "\n".join(map(wrap.fill, lines))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def made_on(environment: Mapping[str, Any], commit: str | None = None) -> str:
    """``netsim 0.2.0 (commit 1a2b3c4d), 2 cores, AMD EPYC, Linux-6.1, torch 2.9.0``."""
    code = f" (commit {commit[:10]})" if commit else ""
    return (
        f"netsim {__version__}{code}, {environment['cores']} cores, {environment['cpu']}, {environment['platform']}, "
        f"torch {environment['torch']}"
    )


def keep(path: Path, document: object) -> None:
    """Write a result file in one move: as JSON, what holds nothing but numbers and words on one line."""
    text = INNERMOST.sub(lambda found: " ".join(found[0].split()), json.dumps(document, indent=1))
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text + "\n")
    partial.replace(path)


def netsim(*words: str, timeout_s: float = 1800) -> dict[str, Any]:
    """One command's document; a probe that is off target (exit code 4) answers one too."""
    print("netsim", *words, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:  # not to fill .netsim
        done = subprocess.run(
            [sys.executable, "-m", "netsim_ddp", *words, "--json", "-"],
            stdout=subprocess.PIPE,
            cwd=folder,
            timeout=timeout_s,
            check=False,
        )
    if done.returncode not in (0, 4) or not done.stdout:
        sys.exit(f"netsim {' '.join(words)} ended with {done.returncode}")
    return dict(json.loads(done.stdout))
