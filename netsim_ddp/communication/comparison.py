"""Whether all ranks are about to do the same: asked once when something is built or loaded, not step by step.

Ranks that were given other options, another model or another version exchange messages that fit, and each makes
something else of them. So whoever builds an exchange says what it is, as a digest of fixed size. The digests meet at
rank 0 by way of the process group's store: not through the group itself, where a rank that does something else would
take a digest for a gradient. Only where they differ are the descriptions themselves exchanged, and every rank raises.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from netsim_ddp.communication.exchange_errors import ALONE, gave_up
from netsim_ddp.communication.group_store import GroupStore
from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import NetsimError, RankTimeout, UsageError
from netsim_ddp.options import written

Facts = dict[str, Any]
"""What a rank says about itself; plain values, as JSON carries them."""

OPTIONS, PARAMETERS, STATE = "options", "parameters", "state"
"""Keys of :data:`Facts` that have words of their own: options by name, parameters as ``[name, shape, type]``, and of a
state whether it was loaded, and the steps that its parts have been through where they count these."""

_SAME, _DIFFERENT, _ABSENT, _REFUSED = "same", "different", "absent", "refused"
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5e-3, 20e-3
_WORD = 16
_LOAD = "load on every rank what that rank saved, all of the same step, or nothing on any"
REFUSED_WAIT_S = 5.0
"""How long a rank that cannot go on waits for the others, to tell them why; they come at about the same time or not
at all."""


class RanksDisagree(UsageError, ValueError):
    """The ranks were not given the same; every rank raises it, and nothing has been exchanged."""


@contextmanager
def same_on_all_ranks(group: Group | None) -> Iterator[Facts]:
    """Build something inside and say in the facts what it is; all ranks must come here. Nothing is compared without a
    group.

    Raises:
        RanksDisagree: on every rank, when their facts differ, or one of the others could not build.
        RankTimeout: a rank did not come within the process group's timeout.
    """
    facts: Facts = {}
    try:
        yield facts
    except (NetsimError, ValueError, TypeError, RuntimeError) as error:
        if group is not None and group.world_size > 1 and not isinstance(error, RanksDisagree | RankTimeout):
            # The other ranks raise too, if they come here as well, instead of waiting for this one. Its own error
            # matters more than what they say.
            with suppress(RanksDisagree, RankTimeout):
                _Table(group, timeout_s=REFUSED_WAIT_S).verdict(f"{_REFUSED} {type(error).__name__}: {error}")
        raise
    if group is not None:
        compare(group, facts)


def compare(group: Group, facts: Mapping[str, Any]) -> None:
    """Hold this rank's ``facts`` against the others'; all ranks must call it, in the same order.

    Raises:
        RanksDisagree: they differ; the message names a rank and what it has.
        RankTimeout: a rank did not come within the process group's timeout.
    """
    if group.world_size == 1:
        return
    table = _Table(group, f" of method {facts['method']}" if "method" in facts else "")
    table.forget()
    text = json.dumps(facts, default=str)
    if table.verdict(hashlib.sha256(text.encode()).hexdigest()) == _SAME:
        return
    raise RanksDisagree(difference([json.loads(each) for each in table.all(text)]))


def difference(facts: Sequence[Mapping[str, Any]]) -> str:
    """In words, the first thing that two ranks have differently."""
    ours = facts[0]
    for rank, theirs in enumerate(facts):
        for key in dict.fromkeys([*ours, *theirs]):
            if ours.get(key) != theirs.get(key):
                return _difference(key, ours.get(key), rank, theirs.get(key))
    return "the ranks' descriptions differ in their form"


def _difference(key: str, ours: Any, rank: int, theirs: Any) -> str:
    if key.endswith(OPTIONS):
        ours, theirs = ours or {}, theirs or {}
        option = next(each for each in dict.fromkeys([*ours, *theirs]) if ours.get(each) != theirs.get(each))
        there, here = (
            f"{option}={written(each[option])}" if option in each else f"no {option}"
            for each in (theirs, ours)
        )
        return f"rank {rank} has {there}, rank 0 has {here}: give every rank the same options"
    if key.endswith(" step"):
        return f"rank {rank} is at {key} {theirs}, rank 0 at {ours}: {_LOAD}"
    if key == PARAMETERS:
        return _parameters(ours or [], rank, theirs or [])
    if key == STATE and ours and theirs:
        return f"rank {rank} {_stands(theirs)}, rank 0 {_stands(ours)}: {_LOAD}"
    return f"rank {rank} has {key} {written(theirs)}, rank 0 has {written(ours)}: give every rank the same"


def _stands(state: Mapping[str, Any]) -> str:
    what = "a state that was loaded" if state["loaded"] else "a state that was not loaded"
    return f"has {what}, at step {max(state['steps'])}" if state["steps"] else f"has {what}"


def _parameters(ours: list[Any], rank: int, theirs: list[Any]) -> str:
    counts = f"rank {rank} has {len(theirs)} parameters, rank 0 has {len(ours)}"
    lacking = {each[0]: None for each in ours}.keys() - {each[0] for each in theirs}
    more = {each[0]: None for each in theirs}.keys() - {each[0] for each in ours}
    if lacking or more:
        where, name = (rank, min(lacking)) if lacking else (0, min(more))
        return f"{counts}: {name} is not on rank {where}; build the same model everywhere"
    for place, (here, there) in enumerate(zip(ours, theirs, strict=False)):
        if here != there:
            return (
                f"rank {rank} has as parameter {place} {_shown(there)}, rank 0 has {_shown(here)}: "
                "build the same model everywhere, its parameters in the same order"
            )
    return counts


def _shown(parameter: Sequence[Any]) -> str:
    name, shape, kind = parameter
    return f"{name} ({'x'.join(map(str, shape)) or 'a number'}, {kind})"


class _Table:
    """Where the ranks of a group lay something down for rank 0, and find its answer.

    Rank 0 says that it is there while it waits for the others: who finds it there waits for its answer, who does not
    waits no longer than the timeout. Every key is removed by who reads it, and an answer begins with the question's own
    random word: what a rank that gave up has left behind is not taken for news.
    """

    def __init__(self, group: Group, what: str = "", timeout_s: float | None = None) -> None:
        self._rank, self._ranks = group.rank, group.world_size
        self._store = GroupStore(group.process_group)
        self._timeout_s = self._store.timeout_s if timeout_s is None else timeout_s
        self._what = what

    def forget(self) -> None:
        """A new beginning: that this rank gave an exchange up before counts no more."""
        self._store.delete(gave_up(self._rank), time.monotonic() + self._timeout_s)

    def verdict(self, digest: str) -> str:
        """Whether all ranks call with the same ``digest``, or one of them refuses."""

        def answer(digests: list[str]) -> str:
            for rank, each in enumerate(digests):
                if each.startswith(_REFUSED):
                    return f"{_REFUSED} {rank}{each.removeprefix(_REFUSED)}"
            return _SAME if len(set(digests)) == 1 else _DIFFERENT

        return self._meet(digest, answer)

    def all(self, text: str) -> list[str]:
        """What every rank calls with, in rank order."""
        found: list[str] = json.loads(self._meet(text, json.dumps))
        return found

    def _meet(self, mine: str, answer: Callable[[list[str]], str]) -> str:
        deadline = time.monotonic() + self._timeout_s
        if self._rank:
            return self._ask(mine, deadline)
        questions, absent = [("", mine)], -1
        self._store.set("of/0", "", deadline)
        try:
            for rank in range(1, self._ranks):
                found = self._take(f"of/{rank}", deadline)
                if found is None and absent < 0:
                    absent = rank
                questions.append(("", "") if found is None else (found[:_WORD], found[_WORD:]))
            told = f"{_ABSENT} {absent}" if absent > 0 else answer([text for _, text in questions])
            for rank, (word, _) in enumerate(questions):
                if word:
                    self._store.set(f"to/{rank}", word + told, deadline)
        finally:  # after the answers: who finds neither would say that rank 0 did not come
            self._store.delete("of/0", deadline)
        return self._heard(told)

    def _ask(self, mine: str, deadline: float) -> str:
        word, latest = secrets.token_hex(_WORD // 2), deadline + self._timeout_s
        self._store.set(f"of/{self._rank}", word + mine, deadline)
        gone = False
        try:
            while True:
                found = self._take(f"to/{self._rank}", deadline)
                if found is not None and found.startswith(word):
                    return self._heard(found.removeprefix(word))
                if found is None:
                    if gone:
                        break
                    gone = time.monotonic() > latest or not self._store.has("of/0", deadline)
                    if not gone:
                        deadline = latest  # rank 0 came, and waits for another rank until its own deadline
                    # Where it is gone, its answer may have come between the two looks: one more.
        finally:
            self._store.delete(f"of/{self._rank}", deadline)  # nothing, once rank 0 has read it
        return self._heard(f"{_ABSENT} 0")

    def _heard(self, told: str) -> str:
        if told.startswith(_REFUSED):
            _, who, reason = told.split(" ", 2)
            raise RanksDisagree(f"rank {who} cannot go on: {reason}")
        if told.startswith(_ABSENT):
            rank = int(told.split()[1])
            raise RankTimeout(
                f"rank {rank} did not come to the exchange{self._what} that the other ranks are about to begin, within "
                f"{self._timeout_s:g} s: it has stopped, or does something else (another model, another hook), or "
                f"{ALONE}",
                rank=rank,
            )
        return told

    def _take(self, key: str, deadline: float) -> str | None:
        """The value of ``key`` once it is there, removed; None at the deadline. By asking again and again: a store's
        own wait would keep other threads of this process from it."""
        pause = _FIRST_WAIT_S
        while not self._store.has(key, deadline):
            if time.monotonic() > deadline:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT_S)
        value = self._store.get(key, deadline)
        self._store.delete(key, deadline)
        return value
