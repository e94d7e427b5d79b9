"""From a file, or a result, to one side of a comparison."""

from __future__ import annotations

from pathlib import Path

from netsim_ddp.results.benchmarks import is_benchmarks, machine, of_benchmarks
from netsim_ddp.results.compare import Side
from netsim_ddp.results.record import Result, decode, parse_json, read_bytes
from netsim_ddp.results.subjects import MACHINE, of_result

WORK = ("batch_size", "compute_s")
"""Of a scenario, what two files must share: a cell does not say it."""


def side_of(path: Path) -> Side:
    """Read a result file, or one of pytest-benchmark.

    Raises:
        UsageError: as ``netsim_ddp.results.record.load``.
    """
    content = read_bytes(path)
    if b'"machine_info"' in content:
        data = decode(content, source=str(path))
        if is_benchmarks(data):
            subjects, notes = of_benchmarks(data, str(path))
            return Side(str(path), subjects, machine(data), notes=notes)
    return side(parse_json(content, source=str(path)), str(path))


def side(result: Result, name: str) -> Side:
    """``result`` as one side; ``name`` is what it is called."""
    known = {key: result.environment.get(key) for key in (*MACHINE, "cores", "python")}
    return Side(
        name,
        of_result(result),
        machine={key: value for key, value in known.items() if value is not None},
        work={key: result.scenario[key] for key in WORK if key in result.scenario},
    )
