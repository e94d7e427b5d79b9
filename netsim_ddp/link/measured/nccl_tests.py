"""Reads what nccl-tests (and rccl-tests, its fork) prints: its tables of every version, and its JSON report.

A table's header names its columns; where somebody cut it off, the columns are those of a known version with which
size, time and bandwidth agree. The rate is a row's own size and time, times what the collective makes each rank's link
carry of it: the two decimals of the printed bandwidth say nothing of a slow network. ``doc/PERFORMANCE.md`` of
nccl-tests has the factors.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.link.measured.measurement import Goodput, Measurement
from netsim_ddp.reading import one_line, positive
from netsim_ddp.units import counted

FACTORS: Mapping[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "alltoall": lambda n: (n - 1) / n,
    "gather": lambda n: (n - 1) / n,
    "scatter": lambda n: (n - 1) / n,
    "broadcast": lambda _: 1.0,
    "reduce": lambda _: 1.0,
    "sendrecv": lambda _: 1.0,
}
"""What each rank's link carries each way, in units of the size that is printed."""
ROUNDS: Mapping[str, Callable[[int], int]] = {
    "all_reduce": lambda n: 2 * (n - 1),
    "all_gather": lambda n: n - 1,
    "reduce_scatter": lambda n: n - 1,
    "sendrecv": lambda _: 1,
}
"""How many messages follow one another."""
MAX_RANKS = 4096
AGREE = 0.08  # two digits of a time in scientific notation
CERTAIN = 0.03
IDLE = 0.1  # the share of a time that its bytes may have, if the rest shall be the delay
GROWTH, MUCH = 0.6, 2.0  # of a size's growth that its time must have, if it shall be that of its bytes
ENOUGH_BYTES, ENOUGH_S = 1 << 18, 1.0  # of a size that stands alone

_UNITS = (1e-6, 1e9, 1e9)  # of the time and of both bandwidths
_HINT = "name the output of nccl-tests as it was printed"
_TYPES = r"u?int(?:8|16|32|64)|half|float(?:16|32|64)?|double|bf(?:loat)?16|f(?:loat|p)?8\w*"
_ROW = re.compile(rf"^\s*(\d+\s+\d+\s+(?:{_TYPES})(?:\s.*)?)$")
_BEGUN = re.compile(r"\d+(?:\s+\d+(?:\s+[a-z]\w*)?)?")
_RANK = re.compile(r"#\s+Rank\s+(\d+)(?:\s+Group\s+(\d+))?\s+Pid\b")
_STARTING = re.compile(r"# Collective test starting:\s*(?:\S*/)?(\w+)")
_PROGRAM = re.compile(rf"\b({'|'.join(FACTORS)}|hypercube)_perf(?:_mpi)?\b")
_WRONG = re.compile(r"# Out of bounds values\s*:\s*(\d+)\s+FAILED")
_SIZES = re.compile(r"# nThread .*\bmaxBytes\s+(\d{1,18})\s+step:\s*(\d{1,18})\((factor|bytes)\)")
_FOOTER = re.compile(r"# (?:Out of bounds values|Avg bus bandwidth)\s*:")
_ONCE = (
    re.compile(r"# nThread\b"),
    _STARTING,
    re.compile(r"# Out of bounds"),
    re.compile(r"# Avg bus bandwidth"),
)
"""Lines that every test prints once."""
_FAILURE = re.compile(r"Test (?:NCCL|CUDA|MPI) failure.*|.*NCCL failure.*")


@dataclass(frozen=True)
class Figure:
    """A printed number, and half of its last digit."""

    value: float
    half: float

    @classmethod
    def of(cls, text: str) -> Figure | None:
        """What ``text`` says; None if that is no number, or none that is finite and not negative."""
        match = re.fullmatch(r"(\d+)(?:\.(\d*))?(?:e([+-]?\d{1,3}))?", text, re.IGNORECASE)
        if match is None:
            return None
        value, power = float(text), int(match[3] or 0) - len(match[2] or "")
        return cls(value, 0.5 * 10.0**power) if math.isfinite(value) else None


@dataclass(frozen=True)
class Sample:
    """One half of a row: out of place, or in place. Bytes, seconds, and the bus bandwidth as printed, byte/s."""

    size: int
    time: Figure
    algbw: Figure
    busbw: Figure

    @property
    def own(self) -> float:
        """Byte/s, from size and time."""
        return self.size / self.time.value

    @property
    def fits(self) -> bool:
        """Whether the printed bandwidth is that of size and time; some collectives count a smaller share of a size."""
        lowest, highest = 0.45 * (1 - AGREE) * self.own, (1 + AGREE) * self.own
        return lowest - self.algbw.half <= self.algbw.value <= highest + self.algbw.half

    @property
    def ratio(self) -> tuple[float, float]:
        """What the link carries in units of the size, as printed, and how uncertain that is, as a share."""
        share = self.busbw.half / self.busbw.value if self.busbw.value > 0 else math.inf
        return self.busbw.value / self.own, share + self.time.half / self.time.value


@dataclass(frozen=True)
class Test:
    """All that a file says: of which collective, among how many ranks, each if known."""

    samples: Sequence[Sample]
    operation: str | None
    ranks: int | None


def looks_like(text: str) -> bool:
    """Whether ``text`` has anything of a table of nccl-tests."""
    return any(_header(line) or _ROW.search(line) or _RANK.search(line) for line in text.splitlines())


def from_table(text: str, source: str) -> Measurement:
    """The measurement in the table ``text`` of the file ``source``.

    Raises:
        UsageError: no row, one that cannot be read, several tests, a failed or cut-off one, or one that shows no rate.
    """
    if wrong := _WRONG.search(text):
        raise UsageError(f"{source}: the test failed, {wrong[1]} values are wrong", hint="repeat the test")
    header: list[str] | None = None
    samples: list[Sample] = []
    for number, line in enumerate(text.splitlines(), 1):
        header = _header(line) or header
        if row := _ROW.search(line):
            samples += _row(row[1].split(), header, f"{source}, line {number}")
    if not samples:
        failure = _FAILURE.search(text)
        why = f": {one_line(failure[0].strip())}" if failure else ""
        raise UsageError(f"{source} holds no row of nccl-tests{why}", hint=_HINT)
    test = Test(
        samples,
        _operation(_STARTING.findall(text) or _PROGRAM.findall(text), source),
        _largest_group({(rank.lstrip("0"), group.lstrip("0")) for rank, group in _RANK.findall(text)}),
    )
    tests = max(len(once.findall(text)) for once in _ONCE)
    if tests > 1:
        if test.ranks == 1:  # each process printed its own
            raise _alone(source)
        raise UsageError(f"{source} holds {tests} tests", hint="write each test into a file of its own")
    _check_end(text, samples, source)
    return _measured(test, source)


def _check_end(text: str, samples: Sequence[Sample], source: str) -> None:
    """Refuse a table that breaks off: a row that is only begun, or sizes that its first line announces and that are
    not there. One that has its last lines came to its end, whatever somebody then took out of it; rows alone, without
    the lines around them, announce nothing.
    """
    if _FOOTER.search(text):
        return
    hint = "name the whole output, or repeat the test"
    last = text.rstrip().rpartition("\n")[2].strip()
    if _BEGUN.fullmatch(last):
        raise UsageError(f"{source} is cut off: its last row is {one_line(last, 60)!r}", hint=hint)
    if announced := _SIZES.search(text):
        largest, step = int(announced[1]), int(announced[2])
        size = max(sample.size for sample in samples)
        following = size * step if announced[3] == "factor" else size + step
        if size < following <= largest:
            raise UsageError(
                f"{source} is cut off: it was to go on to {largest} bytes, and ends at {size}", hint=hint
            )


def _header(line: str) -> list[str] | None:
    """The names of a table's columns, if ``line`` is their line."""
    match = re.search(r"\bsize\s+count\s+type\b.*\b(?:cpu)?time\s+algbw\s+busbw\b.*$", line)
    return match[0].split() if match else None


def _row(words: list[str], header: list[str] | None, where: str) -> list[Sample]:
    size = int(words[0]) if len(words[0]) < 16 else 0
    layouts = [_named(words, header, where)] if header else _guessed(words)
    for layout in layouts:
        halves = [_sample(size, words, at) for at in layout]
        read = [half for half in halves if half is not None]
        if size == 0 and len(words[0]) < 16:
            return []  # fewer bytes than ranks: nothing was sent, and the time is that of a call
        if halves and len(read) == len(halves) and all(half.fits for half in read):
            if (header is None or "#wrong" in header) and any(
                _is_count(words[at + 3 : at + 4]) for at in layout
            ):
                raise UsageError(
                    f"{where}: the test failed, values of {size} bytes are wrong", hint="repeat the test"
                )
            return read
    raise UsageError(
        f"{where}: size, time and bandwidth of the row {one_line(' '.join(words), 60)!r} do not fit its columns",
        hint="is it cut off, or did another line get into it? repeat the test",
    )


def _is_count(words: Sequence[str]) -> bool:
    """Whether the column after the bandwidths counts wrong values: 1 or more of them, as it is no count in the old
    tables, which have the largest error there (``5e-07``), and N/A where nothing was checked."""
    wrong = Figure.of(words[0]) if words else None
    return wrong is not None and wrong.value >= 1


def _named(words: list[str], header: list[str], where: str) -> list[int]:
    """Where each half's time stands, by the header's names."""
    if "cputime" in header:
        raise UsageError(
            f"{where}: these are times of the processor (-C), not of the network", hint="repeat without -C 1"
        )
    stamp = header[-1] == "timestamp"  # a date and a time of day
    starts = [at for at, name in enumerate(header) if name == "time"]
    width = len(header) - stamp - starts[-1]
    if len(words) == len(header) + stamp:
        return starts
    # A trace that is replayed has no out-of-place half, and leaves it blank.
    return starts[:1] if len(starts) > 1 and len(words) == len(header) + stamp - width else []


def _guessed(words: list[str]) -> Iterator[list[int]]:
    """Likewise without a header, for every known layout: half rows of four columns, or of eight with ``-I 1``."""
    first = 3 if len(words) > 3 and Figure.of(words[3]) else 4
    for root, width, halves in itertools.product((1, 0), (4, 8), (2, 1)):
        begin = first + root
        for stamp in (0, 2):
            if len(words) == begin + width * halves + stamp:
                yield [begin + width * half for half in range(halves)]


def _sample(size: int, words: list[str], at: int) -> Sample | None:
    figures = [figure for figure in map(Figure.of, words[at : at + 3]) if figure is not None]
    if len(figures) < 3 or size <= 0 or figures[0].value <= 0:
        return None
    return Sample(
        size, *(Figure(each.value * u, each.half * u) for each, u in zip(figures, _UNITS, strict=True))
    )


def _operation(names: Iterable[str], source: str) -> str | None:
    found = dict.fromkeys(name.removesuffix("_mpi").removesuffix("_perf") for name in names)
    if len(found) > 1:
        raise UsageError(
            f"{source} holds tests of {' and '.join(found)}", hint="write each test into a file of its own"
        )
    return next(iter(found), None)


def _largest_group(ranks: Iterable[tuple[object, object]]) -> int | None:
    """How many ranks a collective has: with NCCL_TESTS_SPLIT they are in groups."""
    return max(Counter(group for _, group in set(ranks)).values(), default=None)


def is_report(data: Any) -> bool:
    """Whether ``data`` is the JSON report of nccl-tests, or of a fork."""
    return isinstance(data, dict) and (
        isinstance(data.get("results"), list)
        or "nccl" in str(data.get("identifier", ""))
        or ("busBw" in data and "algBw" in data)
    )


def from_report(data: Mapping[str, Any], source: str) -> Measurement:
    """The measurement in nccl-tests' own JSON report.

    Raises:
        UsageError: as :func:`from_table`.
    """
    results = data.get("results")
    if not isinstance(results, list):
        raise UsageError(
            f"{source} is a report of a fork of nccl-tests", hint="name the table that it printed instead"
        )
    bounds = data.get("out_of_bounds")
    if isinstance(bounds, dict) and positive(bounds.get("count")):
        raise UsageError(f"{source}: the test failed, values are wrong", hint="repeat the test")
    samples = [
        sample
        for number, row in enumerate(results)
        for sample in _reported(row, f"{source}: results.{number}")
    ]
    if not samples:
        raise UsageError(f"{source} holds no result of nccl-tests", hint=_HINT)
    args = data.get("args")
    program = str(args[0]) if isinstance(args, list) and args else ""
    names = [PurePath(program).name] if program.rstrip("0123456789").endswith(("_perf", "_mpi")) else []
    config = data.get("config")
    devices = config.get("devices") if isinstance(config, dict) else None
    ranks = {
        (each["rank"], int(each.get("group") or 0))
        for each in (devices if isinstance(devices, list) else [])
        if isinstance(each, dict)
        and isinstance(each.get("rank"), int)
        and isinstance(each.get("group", 0), int)
    }
    return _measured(Test(samples, _operation(names, source), _largest_group(ranks)), source)


def _reported(row: Any, where: str) -> Iterator[Sample]:
    size = row.get("size") if isinstance(row, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 10**15:
        raise UsageError(f"{where} has no size", hint=_HINT)
    halves = [row[key] for key in ("out_of_place", "in_place") if row.get(key) is not None]
    for half in halves if size else []:
        if isinstance(half, dict) and "cpu_time" in half:
            raise UsageError(
                f"{where}: these are times of the processor (-C), not of the network",
                hint="repeat without -C 1",
            )
        if isinstance(half, dict) and positive(half.get("nwrong")):
            raise UsageError(f"{where}: the test failed, values are wrong", hint="repeat the test")
        figures = [half.get(key) if isinstance(half, dict) else None for key in ("time", "alg_bw", "bus_bw")]
        time, algbw = positive(figures[0]), figures[1]
        numbers = [0.0 if value == 0 else positive(value) for value in figures]
        if time is None or None in numbers or isinstance(algbw, bool):
            raise UsageError(f"{where} has no time and bandwidth", hint="repeat the test")
        sample = Sample(
            size,
            *(Figure((n or 0.0) * unit, 5e-7 * unit) for n, unit in zip(numbers, _UNITS, strict=True)),
        )
        if not sample.fits:
            raise UsageError(f"{where}: size, time and bandwidth do not agree", hint="repeat the test")
        yield sample


def _measured(test: Test, source: str) -> Measurement:
    factor, ranks = _factor(test, source)
    if test.ranks == 1 and ranks is None:
        raise _alone(source)
    rate = Goodput.of([sample.own * 8 * factor for sample in _largest(test.samples, source)])
    if not math.isfinite(rate.bps) or rate.bps <= 0:
        raise UsageError(f"{source}: the largest size has no rate", hint="repeat the test")
    sizes = len({sample.size for sample in test.samples})
    return Measurement(
        rate,
        f"nccl-tests, {counted(sizes, 'size')}, {ranks or 'unknown'} ranks, "
        f"{test.operation or 'unknown collective'}",
        delay_s=_delay(test, factor, rate.bps, ranks),
    )


def _alone(source: str) -> UsageError:
    return UsageError(
        f"{source}: every process tested alone, with one rank: no network was measured",
        hint="build nccl-tests with MPI=1, or start it with -g",
    )


def _factor(test: Test, source: str) -> tuple[float, int | None]:
    """What each rank's link carries in units of the size, and the number of ranks as far as it can be told.

    A list of ranks may be cut off, and a file may hold none: the printed bandwidth, where it has digits enough, says
    which number of ranks it was.
    """
    ratio, share = min((sample.ratio for sample in test.samples), key=lambda each: each[1])
    certain = share <= CERTAIN and ratio > 0
    of = FACTORS.get(test.operation or "")
    if of is None:
        if not certain:
            missing = "collective" if test.operation is None else "factor"
            raise UsageError(
                f"{source} names no {missing}, and its bandwidth has too few digits to tell what the link carried",
                hint="keep the lines that begin with #",
            )
        return ratio, None if test.ranks == 1 else test.ranks
    if of(2) == of(3):  # the same for any number
        return of(2), None if test.ranks == 1 else test.ranks
    if test.ranks is not None and test.ranks > 1:
        exact = of(test.ranks)
        if not certain or abs(ratio / exact - 1) <= share + 0.02:
            return exact, test.ranks
    if not certain:
        if test.ranks == 1:
            return 1.0, None
        raise UsageError(
            f"{source} does not say how many ranks there were, and its bandwidth has too few digits to tell",
            hint="keep the lines that begin with #",
        )
    ranks = min(range(2, MAX_RANKS), key=lambda n: abs(of(n) - ratio))
    return (of(ranks), ranks) if abs(ratio / of(ranks) - 1) <= share + 0.02 else (ratio, None)


def _largest(samples: Sequence[Sample], source: str) -> list[Sample]:
    """The rows of the largest size whose times have three digits, which are those of its bytes.

    Raises:
        UsageError: its time is that of calls and rounds: a smaller size takes as long.
    """
    size = max(
        [each.size for each in samples if each.time.half / each.time.value < 0.005]
        or [each.size for each in samples]
    )
    found = [each for each in samples if each.size == size]
    took = median(each.time.value for each in found)
    smaller = [each for each in samples if each.size <= size / 1.5]
    shown = size >= ENOUGH_BYTES or took >= ENOUGH_S
    if smaller:
        near = max(each.size for each in smaller)
        shown = took / median(each.time.value for each in smaller if each.size == near) - 1 >= min(
            MUCH, GROWTH * (size / near - 1)
        )
    if not shown:
        raise UsageError(
            f"{source}: {size} bytes, the largest size, take hardly longer than none: that shows no rate",
            hint="repeat the test with -e 64M",
        )
    return found


def _delay(test: Test, factor: float, rate_bps: float, ranks: int | None) -> float | None:
    """The time of one round of the smallest size, less that of its bytes; None where bytes are most of it. The
    software's share is in it."""
    rounds = ROUNDS.get(test.operation or "")
    if rounds is None or ranks is None:
        return None
    size = min(sample.size for sample in test.samples)
    took = median(sample.time.value for sample in test.samples if sample.size == size)
    of_bytes = size * 8 * factor / rate_bps
    return (took - of_bytes) / rounds(ranks) if of_bytes <= IDLE * took else None
