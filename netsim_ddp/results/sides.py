"""From a file, or a result, to one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netsim_ddp.errors import UsageError
from netsim_ddp.results.benchmarks import machine, of_benchmarks
from netsim_ddp.results.compare import Side
from netsim_ddp.results.files import decode, parse_json, read_bytes
from netsim_ddp.results.identity import LIBRARIES, WORK, other_work
from netsim_ddp.results.record import Result
from netsim_ddp.results.subjects import Subject, joined, of_result


def sides_of(paths: Sequence[Path]) -> Side:
    """All files of one side as one: more repeats, more processes of the same benchmarks.

    Raises:
        UsageError: as :func:`side_of`, or the files measured different work.
    """
    sides = [side_of(path) for path in paths]
    first = sides[0]
    for other in sides[1:]:
        if (key := other_work(first.work, other.work)) is not None:
            raise UsageError(
                f"{key} is {first.work[key]} in {first.name} and {other.work[key]} in {other.name}",
                hint="files of one side must have measured the same",
            )
    subjects: dict[object, list[Subject]] = {}
    for each in sides:
        for subject in {subject.key: subject for subject in reversed(each.subjects)}.values():
            subjects.setdefault(subject.key, []).append(subject)
    machine: dict[str, object] = {}
    for key in dict.fromkeys(key for each in sides for key in each.machine):
        values = dict.fromkeys(str(each.machine[key]) for each in sides if key in each.machine)
        machine[key] = " and ".join(values) if len(values) > 1 else first.machine.get(key, next(iter(values)))
    return Side(
        ", ".join(each.name for each in sides),
        [joined(parts) for parts in subjects.values()],
        machine=machine,
        load=max((each.load for each in sides if each.load is not None), default=None),
        work=first.work,
        notes=list(dict.fromkeys(note for each in sides for note in each.notes)),
    )


def side_of(path: Path) -> Side:
    """Read a result file, or one of pytest-benchmark.

    Raises:
        UsageError: as ``netsim_ddp.results.files.load``.
    """
    content = read_bytes(path)
    if b'"machine_info"' in content:
        data = decode(content, source=str(path))
        if isinstance(data, dict) and "benchmarks" in data and "machine_info" in data:
            subjects, notes = of_benchmarks(data, str(path))
            return Side(str(path), subjects, machine(data), notes=notes)
    return side(parse_json(content, source=str(path)), str(path))


def side(result: Result, name: str) -> Side:
    """``result`` as one side; ``name`` is what it is called."""
    known = {key: result.environment.get(key) for key in ("platform", *LIBRARIES, "cores", "python")}
    return Side(
        name,
        of_result(result),
        machine={key: value for key, value in known.items() if value is not None},
        load=load if isinstance(load := result.environment.get("load_1min"), int | float) else None,
        work={key: result.scenario[key] for key in WORK if key in result.scenario},
    )
