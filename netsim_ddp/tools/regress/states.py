"""Two states of one repository, side by side: a commit in a temporary worktree, and the folder as it is.

A state is the folders that come first on ``PYTHONPATH``: of this project's own checkout, or of a user's package. Which
repository it is follows from the working folder; which of its folders, from the modules that are named.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import netsim_ddp
from netsim_ddp.errors import EnvironmentFault, RankTimeout, UsageError

GIT_DEADLINE_S = 120.0
TEMPORARY = "netsim-regress-"
UNWIND_S = 30.0
"""How long a run may take to clear away its link and workers when it is asked to stop."""
_SOURCES = "src"
"""Where a package lies that is not at the top of its repository."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, its stdout, and the lines of its stderr that are not empty."""

    code: int
    out: bytes
    lines: list[str]

    @property
    def last(self) -> str:
        """The last line on stderr, without netsim's name."""
        return self.lines[-1].removeprefix("netsim: ") if self.lines else "nothing"


@dataclass(frozen=True)
class State:
    """One state of the code: ``name`` for messages, the folders that come first on ``PYTHONPATH``. ``own`` are those
    of the repository: what is found elsewhere is the same in both states."""

    name: str
    paths: tuple[Path, ...]
    own: tuple[Path, ...] = ()

    @property
    def is_netsim(self) -> bool:
        """Whether what is measured is netsim itself."""
        return any((folder / "netsim_ddp" / "__init__.py").is_file() for folder in self.own)

    def run(self, words: Sequence[str], *, timeout_s: float, doing: str) -> Ended:
        """Run this Python with the arguments ``words`` and this state's modules; ``doing`` says what for.

        Its working folder is empty: a module that lay there would be found before the state's.

        Raises:
            RankTimeout: it did not end within ``timeout_s`` seconds.
        """
        paths = [*map(str, self.paths), *filter(None, [os.environ.get("PYTHONPATH")])]
        with (
            tempfile.TemporaryDirectory(prefix=TEMPORARY) as empty,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=empty,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise RankTimeout(
                    f"{self.name}: {doing} did not end within {timeout_s:g} s", hint="raise --deadline"
                ) from None
            finally:
                _end(process)
            out.seek(0)
            err.seek(0)
            lines = [line.strip() for line in err.read().decode(errors="replace").split("\n")]
            return Ended(code, out.read(), [line for line in lines if line])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to clear away its link and workers, then insist."""
    if process.poll() is not None:
        return
    with undisturbed():
        process.terminate()
        try:
            process.wait(UNWIND_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def two_states(ref: str, package: Path | None, modules: Sequence[str] = ()) -> Iterator[tuple[State, State]]:
    """``ref`` of a repository in a temporary worktree, and the repository as it is: (base, head).

    Args:
        package: a folder in a git repository whose modules are measured; None for the repository of the working folder,
            where netsim itself is measured if that is its checkout, and else what holds ``modules``.
        modules: the modules that ``--method`` and ``--model`` name.

    Raises:
        UsageError: no such folder, repository or reference, or nothing of it that would be measured.
    """
    folder = Path.cwd() if package is None else package.resolve()
    if not folder.is_dir():
        raise UsageError(f"--package {package} is no folder", hint="name the folder that your module lies in")
    hint = "run it in your checkout, or name a folder in one: --package PATH"
    top = Path(_answer(folder, f"{folder} is not in a git repository", hint, "rev-parse", "--show-toplevel"))
    commit, found = _commit(top, ref)
    _clear_after_the_killed(folder)
    with tempfile.TemporaryDirectory(
        prefix=f"{TEMPORARY}{os.getpid()}-", ignore_cleanup_errors=True
    ) as temporary:
        tree = Path(temporary).resolve() / "base"
        try:
            # A repository's hooks are for its people's own checkouts.
            _answer(
                folder, f"cannot check out {found} of {top}", None,
                "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--quiet", str(tree), commit,
            )  # fmt: skip
            here = folder.resolve().relative_to(top.resolve())
            within = _folders(top, tree, here, modules) if package is None else [here]
            yield (
                _state(f"base ({found})", tree, within),
                _state("head", top.resolve(), within),
            )
        finally:
            with undisturbed():
                _git(folder, "worktree", "remove", "--force", str(tree))


def _state(name: str, top: Path, within: Sequence[Path]) -> State:
    own = tuple(top / each for each in within)
    # A user's package does not bring netsim along.
    return State(name, (*own, Path(netsim_ddp.__file__).resolve().parents[1]), own)


def _folders(top: Path, tree: Path, here: Path, modules: Sequence[str]) -> list[Path]:
    """The folders of the repository, relative to its top, that its modules are imported from."""
    if (top / "netsim_ddp" / "__init__.py").is_file():
        return [Path()]
    places = [place for each in (here, *here.parents) for place in (each, each / _SOURCES)]
    found = [
        place
        for name in dict.fromkeys(module.partition(".")[0] for module in modules)
        for place in places
        if any(_holds(root / place, name) for root in (top, tree))
    ]
    if found:
        return list(dict.fromkeys(found))
    named = f"{', '.join(modules)} is not in {top}" if modules else f"no method or model of {top} is named"
    raise UsageError(
        f"{named}, so there is nothing to measure",
        hint="write --method my_module:factory, and --package PATH where the module is in a folder of its own",
    )


def _holds(folder: Path, module: str) -> bool:
    return (folder / f"{module}.py").is_file() or any((folder / module).glob("**/*.py"))


def _commit(top: Path, ref: str) -> tuple[str, str]:
    """The commit that ``ref`` names, and what names it: a clone of CI has no branch but its own."""
    for name, shown in ((ref, ref), (f"refs/remotes/origin/{ref}", f"origin/{ref}")):
        done = _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if done.returncode == 0:
            return done.stdout.strip(), shown
    hint = "name a commit, a branch or a tag that git log knows; git fetch gets what is not here yet"
    if _git(top, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        hint = "the clone is shallow: fetch-depth: 0 of actions/checkout, or git fetch --unshallow"
    raise UsageError(f"--base {ref!r} is no commit of {top}", hint=hint)


def _clear_after_the_killed(folder: Path) -> None:
    """Take away the worktrees of commands that were killed with SIGKILL and could not do it themselves."""
    for line in _git(folder, "worktree", "list", "--porcelain").stdout.splitlines():
        tree = Path(line.removeprefix("worktree "))
        owner = re.fullmatch(rf"{TEMPORARY}(\d+)-.*", tree.parent.name)
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
def undisturbed() -> Iterator[None]:
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


def _answer(folder: Path, problem: str, hint: str | None, *words: str) -> str:
    done = _git(folder, *words)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()).removeprefix("fatal: ")
        known = said and not said.startswith("not a git repository")
        raise UsageError(problem, hint=said if known or hint is None else hint)
    return done.stdout.strip()
