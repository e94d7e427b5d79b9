"""Which of the named methods each of two states has: one that is in a single state is measured there alone.

A method is absent where its module, or the name in it, is not there; one whose module is there and fails is an error in
head, and in base, which head may well have mended, it counts as absent.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from netsim_ddp.errors import UsageError
from netsim_ddp.methods import BASELINE
from netsim_ddp.names import TORCHVISION_PREFIX, is_reference
from netsim_ddp.tools.regress.states import TEMPORARY, State

# Imports what is named, and writes of each whether it is there, from where, or why not: a JSON list, into a file of
# its own, since a module may print. It runs in the state, whose netsim may be of another version: none is imported.
_LOOK = """
import importlib, json, sys
out, *names = sys.argv[1:]
found = []
for name in names:
    module_name, _, path = name.partition(":")
    try:
        module = value = importlib.import_module(module_name)
        for part in path.split("."):
            value = getattr(value, part, None)
    except (Exception, SystemExit) as error:
        gone = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        why = "" if gone else f"importing {module_name!r} failed: {type(error).__name__}: {error}"
        found.append({"there": False, "why": why})
        continue
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
    found.append({"there": value is not None, "why": "", "places": places})
with open(out, "w", encoding="utf-8") as file:
    json.dump(found, file)
"""
# What a command line of any version checks before it does anything.
_VALIDATE = ("--link", "tc", "--show-commands")
# `python -m netsim_ddp`, killed when this process is (PR_SET_PDEATHSIG, SIGKILL): its own helpers then clear away.
START = """
import ctypes, runpy, sys
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
runpy.run_module("netsim_ddp", run_name="__main__", alter_sys=True)
"""
_IMPORTING = "importing its modules"


@dataclass
class Available:
    """What can be measured of each state. ``methods`` are those to name on its command line, as they were written; None
    for all of them. ``lacks`` are those that the other state has."""

    methods: list[str] | None = None
    lacks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def available(
    states: tuple[State, State], methods: Sequence[str], model: str | None, *, timeout_s: float
) -> tuple[Available, Available]:
    """Of ``methods`` (as ``--method`` takes them) those that each of base and head has.

    Args:
        model: what ``--model`` or the file names; a state that lacks it has none of the methods.

    Raises:
        UsageError: a method, or the model, is in neither state, or its module fails in head.
    """
    models = [] if model is None else [_key(model)]
    keys = [*dict.fromkeys([*map(_key, methods), *models])]
    base, head = (_those_of(state, keys, models, timeout_s) for state in states)
    own = {key for key in keys if base[key].own or head[key].own}
    for key in keys:
        ours, theirs = head[key], base[key]
        if not ours.usable(key in own) and ours.why:
            raise UsageError(f"head: {key}: {ours.why}")
        if not ours.usable(key in own) and not theirs.usable(key in own):
            raise UsageError(
                f"{key!r} is neither in {states[0].name} nor in head",
                hint=ours.said or theirs.why or "your own is named my_module:factory",
            )
    return _available(base, methods, model, own), _available(head, methods, model, own)


def takes(state: State, words: Sequence[str], *, timeout_s: float) -> bool:
    """Whether the ``netsim run`` of ``state`` knows the flags ``words``: its netsim may be of another version."""
    return not state.is_netsim or _refusal(state, words, timeout_s) is None


def _refusal(state: State, words: Sequence[str], timeout_s: float) -> str | None:
    """Returns why the ``netsim run`` of ``state`` refuses the flags ``words``; None where it takes them."""
    ended = state.run(["-c", START, "run", *_VALIDATE, *words], timeout_s=timeout_s, doing=_IMPORTING)
    return None if ended.code == 0 else ended.last


def _key(text: str) -> str:
    """What is looked for: of a method or model of one's own its factory, of netsim's own its options as well."""
    name = text.partition(",")[0].strip()
    return name if is_reference(name) else text


@dataclass(frozen=True)
class _Seen:
    """``own``: in the state's own folders. ``why`` tells what failed in a module that is there, ``said`` how netsim
    itself refused a name."""

    there: bool
    own: bool = False
    why: str = ""
    said: str = ""

    def usable(self, of_the_repository: bool) -> bool:
        """A module of the repository that is found elsewhere is an installed copy of the other state's."""
        return self.there and (self.own or not of_the_repository)


def _available(
    seen: Mapping[str, _Seen], methods: Sequence[str], model: str | None, own: set[str]
) -> Available:
    lost = [text for text in methods if not seen[_key(text)].usable(_key(text) in own)]
    if model is not None and not seen[_key(model)].usable(_key(model) in own):
        lost = list(methods)
    if not lost:
        return Available()
    keys = dict.fromkeys([*map(_key, lost), *([_key(model)] if model else [])])
    notes = [f"{key}: {seen[key].why}" for key in keys if seen[key].why]
    return Available([text for text in methods if text not in lost], lost, notes)


def _those_of(state: State, keys: Sequence[str], models: Sequence[str], timeout_s: float) -> dict[str, _Seen]:
    references = [key for key in keys if is_reference(key) and not key.startswith(TORCHVISION_PREFIX)]
    known = [key for key in keys if key not in references]
    found = dict.fromkeys(known, _Seen(True))
    if state.is_netsim:
        found |= _built_in(
            state, {key: "--model" if key in models else "--method" for key in known}, timeout_s
        )
    return found | _imported(state, references, timeout_s)


def _imported(state: State, names: Sequence[str], timeout_s: float) -> dict[str, _Seen]:
    if not names:
        return {}
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        out = Path(folder) / "found.json"
        ended = state.run(["-c", _LOOK, str(out), *names], timeout_s=timeout_s, doing=_IMPORTING)
        if ended.code != 0:
            raise UsageError(f"{state.name}: importing {', '.join(names)} ended Python: {ended.last}")
        rows = json.loads(out.read_text(encoding="utf-8"))
    found = {}
    for name, row in zip(names, rows, strict=True):
        places = [Path(place).resolve() for place in row.get("places", ()) if place]
        own = any(place.is_relative_to(folder) for place in places for folder in state.own)
        found[name] = _Seen(row["there"], own, " ".join(row["why"].split()))
    return found


def _built_in(state: State, flags: Mapping[str, str], timeout_s: float) -> dict[str, _Seen]:
    """Of netsim's own methods and models, each with its flag, those that this state's command line refuses."""
    names = [name for name in flags if name != BASELINE.name]  # is always there
    words = [word for name in names for word in (flags[name], name)]
    if not names or _refusal(state, words, timeout_s) is None:
        return {}
    found = {name: _refusal(state, [flags[name], name], timeout_s) for name in names}
    return {name: _Seen(False, said=said) for name, said in found.items() if said is not None}
