"""``-k EXPR``: which cells, by words of their ids. A language of its own, as pytest's, and nothing is evaluated.

::

    expr   := term {"or" term}
    term   := factor {"and" factor}
    factor := "not" factor | "(" expr ")" | WORD

A word is in an id or not, letters of any case; everything but spaces and brackets is part of a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from netsim_ddp.errors import UsageError

Matches = Callable[[str], bool]
MAX_DEPTH = 50
_HINT = "write for example -k 'topk and not (100mbps or fp16)'"


def compile_expression(text: str) -> Matches:
    """A function of an id.

    Raises:
        UsageError: not an expression.
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._words = re.findall(r"[()]|[^\s()]+", text)
        self._depth = 0

    def whole(self) -> Matches:
        found = self._any()
        if self._words:
            raise self._error(f"{self._words[0]!r} is not expected")
        return found

    def _any(self) -> Matches:
        return self._series("or", self._all, any)

    def _all(self) -> Matches:
        return self._series("and", self._factor, all)

    def _series(
        self, word: str, part: Callable[[], Matches], combine: Callable[[Iterable[bool]], bool]
    ) -> Matches:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return lambda name: combine(each(name) for each in parts)

    def _factor(self) -> Matches:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("it is nested too deeply")
        found = self._inner()
        self._depth -= 1
        return found

    def _inner(self) -> Matches:
        if self._take("not"):
            inner = self._factor()
            return lambda name: not inner(name)
        if self._take("("):
            inner = self._any()
            if not self._take(")"):
                raise self._error("a bracket is not closed")
            return inner
        if not self._words:
            raise self._error("it ends too early")
        word = self._words.pop(0)
        if word in ("and", "or", ")"):
            raise self._error(f"{word!r} is not expected")
        wanted = word.lower()
        return lambda name: wanted in name.lower()

    def _take(self, word: str) -> bool:
        if self._words and self._words[0] == word:
            self._words.pop(0)
            return True
        return False

    def _error(self, problem: str) -> UsageError:
        shown = self._text if len(self._text) <= 60 else self._text[:57] + "..."
        return UsageError(f"-k {shown!r} is not an expression: {problem}", hint=_HINT)
