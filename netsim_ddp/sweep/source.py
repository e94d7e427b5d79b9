"""Reads a matrix: a file, a built-in scenario by its name, or the result of an earlier sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.reading import parse_yaml
from netsim_ddp.scenario.catalogue import find
from netsim_ddp.scenario.files import read_text
from netsim_ddp.scenario.matrix import Matrix, expand, override, parse, parse_set
from netsim_ddp.sweep.commands import Command, command_of
from netsim_ddp.sweep.plan import Run, plan


def read_matrix(what: str, sets: Sequence[str] = ()) -> tuple[str, Matrix]:
    """The name of a sweep, and its matrix with ``--set`` carried out.

    Raises:
        UsageError: neither a scenario nor a result of a sweep, or a key that cannot be set.
    """
    path = find(what)
    data = read_text(path)
    name = path.stem
    if isinstance(data, Mapping) and "schema_version" in data:
        name, data = _of_result(path, data)
    return name, override(parse(data, str(path)), parse_set(sets, _load))


def _of_result(path: Path, data: Mapping[Any, Any]) -> tuple[str, Any]:
    scenario = data.get("scenario")
    sweep = scenario.get("sweep") if isinstance(scenario, Mapping) else None
    if not isinstance(sweep, Mapping) or not isinstance(sweep.get("file"), Mapping):
        raise UsageError(f"{path} is no result of a sweep", hint=f"netsim run --config {path} repeats a run")
    # A name from elsewhere becomes part of a file's.
    return re.sub(r"[^\w.-]+", "-", str(sweep.get("name", path.stem))).strip(".-") or "sweep", sweep["file"]


def _load(text: str) -> Any:
    return parse_yaml(text, source=f"--set: {text!r}", hint="write for example workers=[2, 4]")


def read_plan(what: str, sets: Sequence[str] = ()) -> tuple[str, Matrix, Command, list[Run]]:
    """:func:`read_matrix`, what its command is, and the runs that it makes."""
    name, matrix = read_matrix(what, sets)
    command = command_of(matrix.command)
    return name, matrix, command, plan(expand(matrix, command.kind))
