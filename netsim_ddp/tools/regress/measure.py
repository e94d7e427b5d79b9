"""Two states of the code, measured in turns on one machine: the only comparison that a noisy, shared runner supports.

Both use the interpreter and the torch of this process. Repeats alternate (ABBA), each a ``netsim run`` of its own, so
what the machine does falls on both alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from netsim_ddp.errors import EnvironmentFault, NetsimError, RankError, UsageError
from netsim_ddp.results.compare import Side
from netsim_ddp.results.files import parse_json
from netsim_ddp.results.merge import merge
from netsim_ddp.results.record import Result
from netsim_ddp.results.sides import side
from netsim_ddp.scenario.files import find
from netsim_ddp.steps.experiment import Event, Report
from netsim_ddp.tools.regress.methods import START, Available, takes
from netsim_ddp.tools.regress.states import State

_FILES = (
    "--config",
    "--codec-from",
    "--ready-from",
    "--timeline",
    "--trace",
    "--link-profile",
    "--data-dir",
    "--text",
)
_KINDS: dict[int, type[NetsimError]] = {2: UsageError, 3: RankError, 4: EnvironmentFault}
NO_BASELINE = ("--baseline", "none")


def measure(
    states: tuple[State, State],
    words: Sequence[str],
    *,
    repeats: int,
    timeout_s: float,
    report: Report,
    save: Callable[[Result | None, Result | None], None] | None = None,
    available: tuple[Available, Available] = (Available(), Available()),
) -> tuple[Result | None, Result | None]:
    """``netsim run WORDS`` of both states, ``repeats`` times each and in turns; all repeats of each as one result.

    Args:
        timeout_s: the longest that one run may take.
        save: sees what there is after each pair of runs.
        available: what each state can be asked for; one that has none of the methods is not run, and has no result.

    Raises:
        NetsimError: a run failed, with the state it was and what it said.
    """
    words = absolute(words)
    asked = [_restricted(words, each.methods) for each in available]
    if not any(word.partition("=")[0] == "--baseline" for word in words):
        # Each state is held against the other one: what every method is held against beside them would cost a run.
        for state, theirs in zip(states, asked, strict=True):
            if takes(state, NO_BASELINE, timeout_s=timeout_s):
                theirs.extend(NO_BASELINE)
    each_runs = [each.methods != [] for each in available]
    found: tuple[list[Result], list[Result]] = ([], [])
    total = repeats * sum(each_runs)

    def merged() -> tuple[Result | None, Result | None]:
        base, head = (merge(each) if each else None for each in found)
        return base, head

    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            if each_runs[index]:
                done = sum(len(each) for each in found)
                report(Event("progress", f"{states[index].name}, run {repeat + 1} of {repeats}", done, total))
                found[index].append(_run(states[index], asked[index], timeout_s))
        if save is not None:
            save(*merged())
    report(Event("progress", "done", total, total))
    return merged()


def _restricted(words: Sequence[str], methods: Sequence[str] | None) -> list[str]:
    """``words`` with ``methods`` instead of those that they, or the file that they name, ask for."""
    if methods is None:
        return list(words)
    kept, skip = [], False
    for word in words:
        if not skip and word != "--method" and not word.startswith("--method="):
            kept.append(word)
        skip = not skip and word == "--method"
    return [*kept, *(word for method in methods for word in ("--method", method))]


def side_of(result: Result | None, state: State, found: Available) -> Side:
    """One side of the comparison: a state that could not be asked for any method has measured nothing."""
    measured = Side(state.name, ()) if result is None else side(result, state.name)
    # Measured in turns: the load that one state's run found is in part what the other's has left.
    return replace(measured, lacks=found.lacks, load=None)


def absolute(words: Sequence[str]) -> list[str]:
    """``words`` with the files that they name by their whole path: the runs start in a folder of their own. So does a
    scenario that comes with netsim: both states measure the same one."""
    found: list[str] = []
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if i and words[i - 1] in _FILES:
            found.append(_absolute(words[i - 1], word))
        elif equals and flag in _FILES:
            found.append(f"{flag}={_absolute(flag, value)}")
        else:
            found.append(word)
    return found


def _absolute(flag: str, value: str) -> str:
    if not os.path.exists(value) and flag == "--config":
        value = str(find(value))
    if flag == "--trace" and not os.path.exists(value):  # UP:DOWN
        return ":".join(os.path.abspath(part) if os.path.exists(part) else part for part in value.split(":"))
    return os.path.abspath(value) if os.path.exists(value) else value


def _run(state: State, words: Sequence[str], timeout_s: float) -> Result:
    """One repeat."""
    ended = state.run(
        ["-c", START, "run", *words, "--repeats", "1", "--json", "-"], timeout_s=timeout_s, doing="netsim run"
    )
    if ended.code == 0:
        return parse_json(ended.out, source=f"{state.name}: the output of netsim run")
    error = _KINDS.get(ended.code, NetsimError)(f"{state.name}: {ended.last}")
    if isinstance(error, RankError):
        error.details = "\n".join(ended.lines[:-1][-30:])
    raise error
