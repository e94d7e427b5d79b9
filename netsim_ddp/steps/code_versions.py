"""The versions of the code that a result is from: netsim's, and those of a user's methods and models."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import netsim_ddp
from netsim_ddp.names import is_own
from netsim_ddp.results.record import CodeRecord
from netsim_ddp.scenario import Settings
from netsim_ddp.steps.environment import installed_version

DEADLINE_S = 10.0
"""The most that one git command may take: a slow file system costs the commit, not the measurement."""


def code_of(settings: Iterable[Settings]) -> list[CodeRecord]:
    """netsim, and every package, by its top module, that ``settings`` name something of; none is imported."""
    names = [
        name or ""
        for each in settings
        for name in (each.model, each.dataset, each.loss_function, *(one.name for one in each.methods))
    ]
    modules = [
        name.partition(":")[0].partition(".")[0]
        for name in names
        if is_own(name) and not name.startswith("torch.")
    ]
    return [_netsim(), *(_module(name) for name in dict.fromkeys(modules))]


def _netsim() -> CodeRecord:
    package = Path(netsim_ddp.__file__).resolve().parent
    commit, dirty = _commit(package / "__init__.py")
    return CodeRecord(
        name="netsim",
        version=netsim_ddp.__version__,
        commit=commit or _installed_from(package.parent),
        dirty=dirty,
    )


def _installed_from(site: Path) -> str | None:
    """The commit that pip installed ``git+https://...`` from (direct_url.json of PEP 610)."""
    for distribution in metadata.distributions(name="netsim-ddp", path=[str(site)]):
        try:
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        except ValueError:
            continue
        commit = origin.get("vcs_info", {}).get("commit_id") if isinstance(origin, dict) else None
        if isinstance(commit, str):
            return commit
    return None


def _module(name: str) -> CodeRecord:
    place = _place(name)
    commit, dirty = (None, None) if place is None else _commit(place)
    return CodeRecord(name=name, version=installed_version(name), commit=commit, dirty=dirty)


def _place(module: str) -> Path | None:
    """A file of ``module``, found as a rank will find it: in the working folder first."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    finally:
        if added:
            sys.path.remove(here)
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    return Path(places[0]).resolve() if places and places[0] else None


def _commit(place: Path) -> tuple[str | None, bool | None]:
    """The commit that ``place`` is in, and whether tracked files, or Python files that are not ignored, differ from it.
    None where no repository has it: what a virtual environment within a checkout holds is not the checkout's."""
    folder = place if place.is_dir() else place.parent
    if _git(folder, "check-ignore", "--quiet", str(place)) is not None:
        return None, None
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    top = _git(folder, "rev-parse", "--show-toplevel")
    if commit is None or top is None:
        return None, None
    changed = _git(Path(top), "status", "--porcelain", "--untracked-files=no")
    new = _git(Path(top), "ls-files", "--others", "--exclude-standard", "--", "*.py")
    return commit, None if changed is None or new is None else bool(changed or new)


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it fails, or is not there: a result is worth having without."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=DEADLINE_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
