"""The command ``netsim`` for tests: as a process of its own, or, much sooner, inside the test's.

A test of what a command says, writes or refuses calls :func:`answer` or :func:`complaint`. A test of what only a
process has (streams that are closed, signals, limits, real ranks that outlive it) calls :func:`command`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from netsim_ddp import cli, log
from tests import forking

ROOT = Path(__file__).parent.parent
DEADLINE_S = 120
FORKED = [sys.executable, "-m", "tests.forking", "command"]
"""The command, with forking.ADDRESS in its environment: see :func:`measuring`."""


def command(
    words: list[str], folder: Path, *, how: list[str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``netsim`` with ``words`` in ``folder``, as a process that finds this checkout.

    Args:
        how: the words that start it, ``python -m netsim_ddp`` if not given.
        options: more of :func:`subprocess.run`; ``env`` is added to this process's environment.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    given = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": DEADLINE_S}
    start = how or [sys.executable, "-m", "netsim_ddp"]
    return subprocess.run([*start, *words], check=False, **{**given, **options})


_SAME = {"-n": "--workers", "--nproc-per-node": "--workers", "--runs": "--repeats"}


def instead(usual: Sequence[str], *words: str) -> list[str]:
    """``usual``, perhaps a command and flags with a value each, without the flags of ``words``; then ``words``."""
    flags = {_SAME.get(word, word) for word in words}
    begin = 0 if usual[0].startswith("-") else 1
    pairs = [usual[at : at + 2] for at in range(begin, len(usual), 2)]
    kept = [word for pair in pairs if _SAME.get(pair[0], pair[0]) not in flags for word in pair]
    return [*usual[:begin], *kept, *words]


def measuring(words: list[str], folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """As :func:`command`, for a test of what ranks do: their fork server need not import torch (tests/forking.py)."""
    env = options.pop("env", {}) | {forking.ADDRESS: forking.address()}
    return command(words, folder, how=FORKED, env=env, **options)


@contextlib.contextmanager
def _process_state_restored() -> Iterator[None]:
    """What the command changes of the process that it runs in, and what Python code that it imports adds."""
    path, modules, handler = list(sys.path), set(sys.modules), signal.getsignal(signal.SIGTERM)
    logger = logging.getLogger(log.NAME)
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(os.getcwd()):
                del sys.modules[name]
        signal.signal(signal.SIGTERM, handler)
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers


def answer(
    words: list[str], folder: Path, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``netsim`` with ``words`` in ``folder``, in this process; returns what :func:`command` would."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, env or {}),
        mock.patch.object(sys, "argv", ["netsim", *words]),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        _process_state_restored(),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, *texts)


def complaint(words: list[str], folder: Path, *, code: int = 2, **options: Any) -> str:
    """Returns the one line that a mistake is answered with, without its ``netsim: ``."""
    done = answer(words, folder, **options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("netsim: ")
    assert not re.search(r"Traceback|pydantic|[Ii]nput should|valid integer|None", done.stderr)
    return done.stderr.removeprefix("netsim: ").rstrip("\n")
