"""Scenarios by name: the built-in ones are files of ``scenarios/``, beside the package or inside its wheel."""

from __future__ import annotations

from pathlib import Path

import netsim_ddp
from netsim_ddp.errors import UsageError
from netsim_ddp.names import suggest

SUFFIXES = (".yaml", ".yml", ".json")


def folder() -> Path | None:
    """Where the built-in scenarios are: in a wheel inside the package, in a checkout beside it."""
    package = Path(netsim_ddp.__file__).parent
    places = (package / "scenarios", package.parent / "scenarios")
    return next((place for place in places if (place / "quick.yaml").is_file()), None)


def built_in() -> dict[str, Path]:
    """Every built-in scenario by its name, alphabetically."""
    where = folder()
    return {} if where is None else {path.stem: path for path in sorted(where.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file that ``name`` stands for: a path, or the name of a built-in scenario.

    Raises:
        UsageError: neither.
    """
    path = Path(name)
    if path.suffix.lower() in SUFFIXES or path.is_file() or path.name != name:
        return path
    known = built_in()
    if name not in known:
        hint = suggest(name, known) if known else "write the path of a file in YAML"
        raise UsageError(f"scenario {name!r} is not known", hint=hint)
    return known[name]
