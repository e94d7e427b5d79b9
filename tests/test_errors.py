"""The error tree: who is whose child, and which exit code each gives."""

from __future__ import annotations

import pickle

import pytest

from netsim_ddp import errors

TREE = {
    "NetsimError": ("Exception", 1),
    "UsageError": ("NetsimError", 2),
    "RankError": ("NetsimError", 3),
    "RankTimeout": ("RankError", 3),
    "EnvironmentFault": ("NetsimError", 4),
    "LinkUnavailable": ("EnvironmentFault", 4),
    "LinkOffTarget": ("EnvironmentFault", 4),
    "LinkLost": ("LinkUnavailable", 4),
    "Regression": ("NetsimError", 5),
    "NothingComparable": ("NetsimError", 6),
}


@pytest.mark.parametrize(("name", "parent", "code"), [(name, *rest) for name, rest in TREE.items()])
def test_parent_and_exit_code(name: str, parent: str, code: int) -> None:
    error = getattr(errors, name)
    assert error.__bases__[0].__name__ == parent
    assert error.exit_code == code
    assert f"{name} " in str(errors.__doc__), "the docstring draws the whole tree"


def test_the_tree_is_whole() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert found == set(TREE)


def test_the_text_holds_the_hint_which_is_kept_apart_too() -> None:
    error = errors.UsageError("no such link", hint="write tc or bucket")
    assert (error.message, error.hint) == ("no such link", "write tc or bucket")
    assert str(error) == "no such link (write tc or bucket)"
    assert str(errors.UsageError("no such link")) == "no such link"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_rank_error_names_its_rank() -> None:
    error = errors.RankTimeout("rank 3 is stuck", rank=3, details="Traceback ...")
    assert (error.rank, error.details, error.exit_code) == (3, "Traceback ...", 3)


def test_interrupted_is_the_shells_own_code() -> None:
    assert errors.INTERRUPTED == 128 + 2
