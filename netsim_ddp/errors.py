"""The error tree and its exit codes.

::

    NetsimError            1   a bug of ours, when nothing more precise fits
      UsageError           2   bad flag, value, key or file
      RankError            3   a worker failed
        RankTimeout        3   a worker made no progress before its deadline
      EnvironmentFault     4   this machine cannot deliver what was asked
        LinkUnavailable    4   the link cannot be made here
          LinkLost         4   it was made, and a process that it needs died
        LinkOffTarget      4   the link was made and measured, and is not what was asked
      Regression           5   a comparison found a regression
      NothingComparable    6   a comparison had nothing to compare

An interrupted command exits with 130. Only ``netsim_ddp.cli`` turns an error into text and a code.
"""

from __future__ import annotations

import errno

INTERRUPTED = 130
EXHAUSTED = {
    errno.ENOSPC: "free some space, or name another folder",
    errno.EDQUOT: "free some of your quota, or name another folder",
    errno.EFBIG: "raise the limit on file sizes: ulimit -f",
    errno.EROFS: "name a folder that can be written",
    errno.EIO: "the disk fails; name another folder",
    errno.EMFILE: "raise the limit on open files: ulimit -n 4096",
    errno.ENFILE: "close some programs: the whole system has too many files open",
    errno.EAGAIN: "raise the limit on processes: ulimit -u",
    errno.ENOMEM: "free some memory, or raise its limit: ulimit -v",
}
"""What a machine can run out of, by the error that tells it, and what to do."""


def printable(text: str) -> str:
    """Returns ``text`` with a space for every character that cannot be printed."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


class NetsimError(Exception):
    """Base of every error that netsim raises on purpose. ``hint`` says what to type instead, and is part of the text:
    in a program or a notebook, ``str(error)`` is all that a user sees."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # What stands in somebody's file must neither break the line nor move the cursor.
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(NetsimError):
    """The request itself is wrong: a flag, a value, a key, a file."""

    exit_code = 2


class RankError(NetsimError):
    """A worker process failed; ``rank`` is the first one that did, ``details`` its traceback."""

    exit_code = 3

    def __init__(
        self, message: str, *, rank: int | None = None, details: str = "", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.rank = rank
        self.details = details


class RankTimeout(RankError):
    """A worker made no progress before its deadline."""


class EnvironmentFault(NetsimError):
    """The request is fine; this machine cannot carry it out."""

    exit_code = 4


class LinkUnavailable(EnvironmentFault):
    """The emulated link cannot be made here (no privileges, no qdisc, not Linux ...).

    ``remedy`` is what would make it possible here, for commands that have no other kind of link to fall back on;
    ``wanted`` are the flags that are the trouble, where the link could be made without them.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        remedy: str | None = None,
        wanted: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.remedy = remedy
        self.wanted = wanted


class LinkLost(LinkUnavailable):
    """The link was made, and is gone: a process that holds it or carries its packets died."""


class LinkOffTarget(EnvironmentFault):
    """The link was made, measured, and does not deliver what was asked for."""


class Regression(NetsimError):
    """A comparison found a regression."""

    exit_code = 5


class NothingComparable(NetsimError):
    """A comparison had no pair of cells to compare."""

    exit_code = 6


def cannot_write(path: object, error: OSError) -> NetsimError:
    """What to raise when ``path`` cannot be written: this machine's fault where it has run out of something, else the
    request's."""
    text = f"cannot write {path}: {error.strerror or error}"
    if error.errno in EXHAUSTED:
        return EnvironmentFault(text, hint=EXHAUSTED[error.errno])
    return UsageError(text, hint="name a file in a folder you can write to")


def describe(error: BaseException) -> str:
    """Returns ``ValueError: its message`` without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
