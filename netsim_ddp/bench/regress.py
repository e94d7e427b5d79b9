"""Two states of the code, measured in turns on one machine: the only comparison that a noisy, shared runner supports.

A state is a folder that comes first on ``PYTHONPATH``: a checkout of this project, or of a user's own package. Both use
the interpreter and the torch of this process. Repeats alternate (ABBA), each a ``netsim run`` of its own, so what the
machine does falls on both alike.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import netsim_ddp
from netsim_ddp.bench.runner import Event, Report
from netsim_ddp.errors import EnvironmentFault, NetsimError, RankError, RankTimeout, UsageError
from netsim_ddp.results.merge import merge
from netsim_ddp.results.record import Result, parse_json

GIT_DEADLINE_S = 120.0
_TEMPORARY = "netsim-regress-"
UNWIND_S = 30.0
"""How long a run may take to clear away its link and workers when it is asked to stop."""
_FILES = ("--config", "--codec-from", "--timeline", "--trace", "--link-profile", "--data-dir")
_KINDS: dict[int, type[NetsimError]] = {2: UsageError, 3: RankError, 4: EnvironmentFault}
# `python -m netsim_ddp`, killed when this process is (PR_SET_PDEATHSIG, SIGKILL): its own helpers then clear away.
_START = """
import ctypes, runpy, sys
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
runpy.run_module("netsim_ddp", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class State:
    """One state of the code: ``name`` for messages, the folders that come first on ``PYTHONPATH``."""

    name: str
    paths: tuple[Path, ...]


def own_checkout() -> Path:
    """The checkout that this netsim runs from.

    Raises:
        UsageError: it is installed, and no checkout.
    """
    folder = Path(netsim_ddp.__file__).resolve().parents[1]
    done = _git(folder, "rev-parse", "--show-toplevel")
    if done.returncode == 0 and Path(done.stdout.strip()) == folder:
        return folder
    raise UsageError(
        f"this netsim is installed in {folder}, which is no checkout of its own",
        hint="name your package's repository: --package PATH",
    )


@contextmanager
def two_states(ref: str, package: Path | None) -> Iterator[tuple[State, State]]:
    """``ref`` of a repository in a temporary worktree, and the repository as it is: (base, head).

    Args:
        package: a folder in a user's repository whose modules ``--method`` names; None for this project.

    Raises:
        UsageError: no such folder, repository or reference.
    """
    folder = own_checkout() if package is None else package.resolve()
    if not folder.is_dir():
        raise UsageError(f"--package {package} is no folder", hint="name the folder that your module lies in")
    top = _answer(folder, f"{folder} is not in a git repository", "rev-parse", "--show-toplevel")
    commit = _answer(
        folder,
        f"--base {ref!r} is no commit of {top}",
        "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}",
    )  # fmt: skip
    within = folder.relative_to(Path(top).resolve())
    netsim = () if package is None else (Path(netsim_ddp.__file__).resolve().parents[1],)
    _clear_after_the_killed(folder)
    mine = f"{_TEMPORARY}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=mine, ignore_cleanup_errors=True) as temporary:
        tree = Path(temporary) / "base"
        try:
            # A repository's hooks are for its people's own checkouts.
            _answer(
                folder,
                f"cannot check out {ref} of {top}",
                "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--quiet", str(tree), commit,
            )  # fmt: skip
            if not (tree / within).is_dir():
                raise UsageError(f"{ref} of {top} has no folder {within}", hint="name a later --base")
            base = State(f"base ({ref})", (tree / within, *netsim))
            yield base, State("head", (folder, *netsim))
        finally:
            with _undisturbed():
                _git(folder, "worktree", "remove", "--force", str(tree))


def _clear_after_the_killed(folder: Path) -> None:
    """Take away the worktrees of commands that were killed with SIGKILL and could not do it themselves."""
    for line in _git(folder, "worktree", "list", "--porcelain").stdout.splitlines():
        tree = Path(line.removeprefix("worktree "))
        owner = re.fullmatch(rf"{_TEMPORARY}(\d+)-.*", tree.parent.name)
        if line.startswith("worktree ") and owner and not _alive(int(owner[1])):
            _git(folder, "worktree", "remove", "--force", str(tree))
            shutil.rmtree(tree.parent, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not stop the clearing away after the first."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=GIT_DEADLINE_S,
            check=False,
            # A prompt for a password would wait for nobody.
            env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise EnvironmentFault("netsim regress needs git, which is not here", hint="install git") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"git {words[0]} did not end within {GIT_DEADLINE_S:g} s") from None


def _answer(folder: Path, problem: str, *words: str) -> str:
    done = _git(folder, *words)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()).removeprefix("fatal: ")
        raise UsageError(problem, hint=said or None)
    return done.stdout.strip()


def measure(
    states: tuple[State, State],
    words: Sequence[str],
    *,
    repeats: int,
    timeout_s: float,
    report: Report,
    save: Callable[[Result, Result], None] | None = None,
) -> tuple[Result, Result]:
    """``netsim run WORDS`` of both states, ``repeats`` times each and in turns; all repeats of each as one result.

    Args:
        timeout_s: the longest that one run may take.
        save: sees what there is after each pair of runs.

    Raises:
        NetsimError: a run failed, with the state it was and what it said.
    """
    words = absolute(words)
    found: tuple[list[Result], list[Result]] = ([], [])
    with tempfile.TemporaryDirectory(prefix="netsim-regress-") as empty:
        for repeat in range(repeats):
            order = (0, 1) if repeat % 2 == 0 else (1, 0)
            for index in order:
                done = sum(len(each) for each in found)
                text = f"{states[index].name}, run {repeat + 1} of {repeats}"
                report(Event("progress", text, done, 2 * repeats))
                found[index].append(_run(states[index], words, Path(empty), timeout_s))
            if save is not None:
                save(merge(found[0]), merge(found[1]))
    report(Event("progress", "done", 2 * repeats, 2 * repeats))
    return merge(found[0]), merge(found[1])


def absolute(words: Sequence[str]) -> list[str]:
    """``words`` with the files that they name by their whole path: the runs start in a folder of their own."""
    found: list[str] = []
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if i and words[i - 1] in _FILES and os.path.exists(word):
            found.append(os.path.abspath(word))
        elif equals and flag in _FILES and os.path.exists(value):
            found.append(f"{flag}={os.path.abspath(value)}")
        else:
            found.append(word)
    return found


def _run(state: State, words: Sequence[str], folder: Path, timeout_s: float) -> Result:
    """One repeat. ``folder`` is empty: a module that lay there would be found before the state's."""
    paths = [*map(str, state.paths), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-c", _START, "run", *words, "--repeats", "1", "--json", "-"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RankTimeout(
                f"{state.name}: netsim run did not end within {timeout_s:g} s", hint="raise --deadline"
            ) from None
        finally:
            _end(process)
        out.seek(0)
        err.seek(0)
        if code != 0:
            raise _failure(state, code, err.read().decode(errors="replace"))
        return parse_json(out.read(), source=f"{state.name}: the output of netsim run")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to clear away its link and workers, then insist."""
    if process.poll() is not None:
        return
    with _undisturbed():
        process.terminate()
        try:
            process.wait(UNWIND_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(state: State, code: int, said: str) -> NetsimError:
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1].removeprefix("netsim: ") if lines else "nothing"
    kind = _KINDS.get(code, NetsimError)
    error = kind(f"{state.name}: {last}")
    if isinstance(error, RankError):
        error.details = "\n".join(lines[:-1][-30:])
    return error
