"""Files of pytest-benchmark, as far as a comparison reads them.

The rounds of a benchmark run one after the other in one process, so neighbours resemble each other: to count each as a
sample would promise a precision that nobody has. They are taken in ``GROUPS`` consecutive groups, each with its median
as one sample. What differs from process to process stays invisible to them: a subject says how many processes it comes
from, and the comparison says what follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from statistics import median
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.reading import positive
from netsim_ddp.results.subjects import Figure, Subject

GROUPS = 10


def of_benchmarks(data: Mapping[str, Any], source: str) -> tuple[list[Subject], list[str]]:
    """One subject per benchmark, matched by its full name. ``extra_info["bytes"]`` is a figure that does not vary.

    Returns:
        The subjects, and a sentence for each benchmark that is left out: one whose timer could not see a round.

    Raises:
        UsageError: keys missing or of the wrong type, or rounds that were not saved.
    """
    benchmarks = data["benchmarks"]
    if not isinstance(benchmarks, list):
        raise UsageError(f"{source}: benchmarks is not a list")
    subjects, notes = [], []
    for number, item in enumerate(benchmarks):
        subject = _subject(item, f"{source}: benchmarks.{number}")
        rounds = item["stats"]["data"]
        if zeros := sum(value == 0 for value in rounds):
            notes.append(
                f"{item['fullname']} is left out: {zeros} of its {len(rounds)} rounds in {source} took 0 s, which its "
                "timer could not see (--benchmark-min-time, or more work in a round)"
            )
        else:
            subjects.append(subject)
    return subjects, notes


def machine(data: Mapping[str, Any]) -> dict[str, object]:
    """Processor and interpreter, where the file names them."""
    info = data["machine_info"] if isinstance(data["machine_info"], dict) else {}
    cpu = info.get("cpu")
    known = {
        "cpu": cpu.get("brand_raw") if isinstance(cpu, dict) else None,
        "python": info.get("python_version"),
    }
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _subject(item: Any, where: str) -> Subject:
    stats = item.get("stats") if isinstance(item, dict) else None
    name = item.get("fullname") if isinstance(item, dict) else None
    if not isinstance(stats, dict) or not isinstance(name, str):
        raise UsageError(f"{where} has no fullname or no stats")
    rounds = stats.get("data")
    if rounds is None:
        raise UsageError(
            f"{where} ({name}) has no rounds", hint="save them: pytest --benchmark-json FILE keeps stats.data"
        )
    # Zero is a time too: of a timer that could not see the round.
    if (
        not isinstance(rounds, list)
        or not rounds
        or not all(
            positive(value) is not None or (value == 0 and not isinstance(value, bool)) for value in rounds
        )
    ):
        raise UsageError(f"{where} ({name}): stats.data is not a list of times")
    extra = item.get("extra_info")
    count = extra.get("bytes") if isinstance(extra, dict) else None
    counted = 0.0 if count == 0 else positive(count)
    return Subject(
        identity={"benchmark": name},
        times={"median": grouped(rounds)},
        figures={} if counted is None else {"bytes": Figure(counted)},
        processes=[median(rounds)],
    )


def grouped(rounds: list[float]) -> list[float]:
    """At most ``GROUPS`` samples, each the median of as many consecutive rounds, give or take one."""
    groups = min(GROUPS, len(rounds))
    cuts = [round(i * len(rounds) / groups) for i in range(groups + 1)]
    return [median(rounds[begin:end]) for begin, end in itertools.pairwise(cuts)]
