"""nccl-tests' tables of every version: the rate is that of size and time, the delay that of sizes that show it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE
from tests.test_measured import profile_of, refusal

FACTOR = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "alltoall": lambda n: (n - 1) / n,
    "broadcast": lambda _: 1.0,
    "sendrecv": lambda _: 1.0,
}
SIZES = (8, 1024, 1 << 20, 1 << 24, 1 << 27)


def shown(value: float, width: int) -> str:
    """A figure as nccl-tests prints it: fewer decimals as it grows, then in scientific notation."""
    digits = len(str(int(value))) if value >= 1 else 0
    for limit, form in ((width - 2, ".2f"), (width - 1, ".1f"), (width + 1, ".0f")):
        if digits < limit:
            return f"{value:{width}{form}}"
    return f"{value:{width}.1e}" if width >= 7 else f"{value:{width}.0e}"


class Run:
    """A run of nccl-tests on a network of ``rate`` bit/s of goodput and ``delay`` seconds from rank to rank."""

    def __init__(
        self, rate: float, delay: float = 0.0, operation: str = "all_reduce", ranks: int = 2
    ) -> None:
        self.rate, self.delay, self.operation, self.ranks = rate, delay, operation, ranks

    def seconds(self, size: int) -> float:
        rounds = 2 * (self.ranks - 1) if self.operation == "all_reduce" else self.ranks - 1
        return size * FACTOR[self.operation](self.ranks) * 8 / self.rate + self.delay * rounds + 20e-6

    def half(self, size: int, wrong: str = "0", *, per_iteration: bool = False) -> str:
        took = self.seconds(size)
        algbw = size / took / 1e9
        words = f"  {shown(took * 1e6, 7)}  {shown(algbw, 6)}  {shown(algbw * FACTOR[self.operation](self.ranks), 6)}"
        more = "".join(f"  {shown(took * 1e6 * by, 7)}" for by in (0.99, 1.05, 1.04)) + f"  {shown(1.32, 7)}"
        return f"{words}  {wrong:>6}" + (more if per_iteration else "")

    def row(
        self,
        size: int,
        *,
        root: bool = True,
        redop: bool = True,
        wrong: str = "0",
        stamp: str = "",
        **how: bool,
    ) -> str:
        begin = f"{size:12d}  {size // 4:12d}  {'float':>8}"
        begin += f"  {'sum':>6}" * redop + f"  {-1:6d}" * root
        return begin + self.half(size, wrong, **how) * 2 + stamp

    def top(self) -> list[str]:
        return [
            "# nccl-tests version 2.17.6 nccl-headers=22807 nccl-library=22807",
            f"# Collective test starting: {self.operation}_perf",
            "# nThread 1 nGpus 1 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1",
            "#",
            "# Using devices",
            *(
                f"#  Rank {r:2d} Group  0 Pid {100 + r:6d} on host{r} device  0 [0x00] NVIDIA A100"
                for r in range(self.ranks)
            ),
            "#",
        ]

    def table(self, sizes: Sequence[int] = SIZES) -> str:
        half = "time   algbw   busbw #wrong"
        head = [
            f"#{'out-of-place':>73}{'in-place':>31}",
            f"#       size         count      type   redop    root     {half}     {half}",
            f"#        (B)    (elements){'(us)  (GB/s)  (GB/s)':>51}{'(us)  (GB/s)  (GB/s)':>32}",
        ]
        foot = ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 0.06", "#"]
        return "\n".join([*self.top(), *head, *(self.row(size) for size in sizes), *foot]) + "\n"

    def report(self, sizes: Sequence[int] = SIZES, **half: Any) -> dict[str, Any]:
        results = []
        for size in sizes:
            took = self.seconds(size)
            busbw = size / took / 1e9 * FACTOR[self.operation](self.ranks)
            one = {
                "time": round(took * 1e6, 6),
                "alg_bw": round(size / took / 1e9, 6),
                "bus_bw": round(busbw, 6),
                "nwrong": 0.0,
            }
            row = {"size": size, "count": size // 4, "type": "float", "redop": "sum", "root": "    -1"}
            results.append({**row, "out_of_place": {**one, **half}, "in_place": one, "actual_iterations": 20})
        devices = [
            {"rank": r, "group": 0, "pid": r, "hostname": f"host{r}", "device": 0} for r in range(self.ranks)
        ]
        return {
            "version": 2,
            "args": [f"/opt/nccl-tests/build/{self.operation}_perf", "-b", "8"],
            "nccl_version": 22807,
            "config": {"nthreads": 1, "ngpus": 1, "devices": devices},
            "results": results,
            "out_of_bounds": {"count": 0, "okay": "true"},
        }


def rate_of(found: dict[str, str]) -> float:
    """The goodput that the profile's link has, bit/s."""
    rate = found["bandwidth"]
    return (
        float(rate.removesuffix("bps").removesuffix("k"))
        * (1e3 if "k" in rate else 1)
        * SEGMENT_PAYLOAD
        / SEGMENT_WIRE
    )


@pytest.mark.parametrize("rate", [3e6, 95e6, 940e6, 9.4e9, 90e9])
@pytest.mark.parametrize(("operation", "ranks"), [(name, n) for name in FACTOR for n in (2, 3, 8)])
def test_every_collective_at_every_rate_is_the_link_that_it_ran_on(
    tmp_path: Path, operation: str, ranks: int, rate: float
) -> None:
    delay = min(2e-3, 2e6 / rate)
    sizes = (8, *(1 << power for power in range(20, 32)))
    found = profile_of(tmp_path, Run(rate, delay, operation, ranks).table(sizes))
    assert rate_of(found) == pytest.approx(rate, rel=0.05)
    assert f"{ranks} ranks, {operation}" in found["source"]
    if operation in ("all_reduce", "all_gather", "reduce_scatter") and delay > 1e-4:
        assert float(found["delay"].removesuffix("us")) == pytest.approx(delay * 1e6, rel=0.1)
    assert "jitter" not in found


def test_a_size_that_is_bytes_shows_no_delay(tmp_path: Path) -> None:
    assert "delay" not in profile_of(
        tmp_path, Run(9.4e9, 2e-3).table([1 << 27])
    )  # -b and -e are 32M by default
    assert "delay" not in profile_of(tmp_path, Run(9.4e9, 2e-3).table([1 << 27, 1 << 28]))
    assert "delay" not in profile_of(
        tmp_path, Run(100e9, 1e-6).table()
    )  # shorter than the emulated link's own


def test_times_in_scientific_notation_and_bandwidths_without_digits_are_read(tmp_path: Path) -> None:
    text = Run(1e6).table([8, 1 << 20, 1 << 24])
    assert "1.3e+08" in text
    assert " 0.00 " in text
    found = profile_of(tmp_path, text)
    assert rate_of(found) == pytest.approx(1e6, rel=0.01)  # of the largest time with three digits
    assert "3 sizes" in found["source"]
    assert rate_of(profile_of(tmp_path, Run(1e6).table([1 << 24, 1 << 25]))) == pytest.approx(1e6, rel=0.05)


PER_ITERATION = (
    "# size count type redop root time algbw busbw #wrong i_min i_max i_p99 i_cv% "
    "time algbw busbw #wrong i_min i_max i_p99 i_cv% timestamp"
)
HEADERS = {
    "size count type redop root time algbw busbw #wrong time algbw busbw #wrong": {},
    "size count type redop time algbw busbw error time algbw busbw error": {"root": False, "wrong": "5e-07"},
    "size count type time algbw busbw error time algbw busbw error": {
        "root": False,
        "redop": False,
        "wrong": "0e+00",
    },
    "size count type redop root time algbw busbw #wrong time algbw busbw #wrong #": {"wrong": "N/A"},
    PER_ITERATION: {"per_iteration": True, "stamp": "  2026-01-01 10:30:00"},
}


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("header", HEADERS)
def test_the_columns_of_every_version(tmp_path: Path, header: str, headed: bool) -> None:
    run = Run(9.4e9)
    rows = [run.row(size, **HEADERS[header]) for size in SIZES]  # type: ignore[arg-type]
    named = ["#  " + header.removeprefix("# ").removesuffix(" #")] if headed else []
    found = profile_of(tmp_path, "\n".join([*run.top(), *named, *rows]))
    assert rate_of(found) == pytest.approx(9.4e9, rel=0.01)
    assert "5 sizes" in found["source"]


PREFIXES = {
    "mpirun --tag-output": "[1,0]<stdout>:",
    "mpirun 5 --tag-output": "[prterun-host-42@1,0]<stdout>: ",
    "srun -l": " 0: ",
    "mpiexec -l": "[0] ",
    "kubectl logs --prefix": "[pod/worker-0/nccl] ",
    "docker compose": "worker-0  | ",
    "a workflow's log": "2026-01-01T10:30:00.0000000Z ",
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=list(PREFIXES))
def test_what_a_launcher_puts_before_a_line_is_passed_over(tmp_path: Path, prefix: str) -> None:
    lines = Run(9.4e9, 1e-3).table().splitlines()
    found = profile_of(tmp_path, "".join(f"{prefix}{line}\r\n" for line in lines))
    assert rate_of(found) == pytest.approx(9.4e9, rel=0.02)
    assert "5 sizes, 2 ranks, all_reduce" in found["source"]
    assert found["delay"] == "1010us"


def test_debug_output_between_the_rows_is_passed_over(tmp_path: Path) -> None:
    noise = "host0:22:28 [0] NCCL INFO comm 0x55a2c rank 0 nranks 2 cudaDev 0 busId 1e0 - Init START"
    text = f"\n{noise}\n".join(Run(9.4e9).table().splitlines())
    assert rate_of(profile_of(tmp_path, text)) == pytest.approx(9.4e9, rel=0.01)


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_without_its_lines_of_ranks_the_bandwidth_tells_how_many_there_were(
    tmp_path: Path, ranks: int
) -> None:
    run = Run(9.4e9, operation="all_reduce", ranks=ranks)
    rows = [run.row(size) for size in SIZES]
    found = profile_of(tmp_path, "\n".join(["$ mpirun ./build/all_reduce_perf -b 8", *rows]))
    assert rate_of(found) == pytest.approx(9.4e9, rel=0.01)
    found = profile_of(tmp_path, "\n".join(rows))
    assert rate_of(found) == pytest.approx(9.4e9, rel=0.02)
    assert "unknown ranks, unknown collective" in found["source"]
    slow = Run(3e6, ranks=ranks)
    (tmp_path / "mylink.yaml").unlink()
    said = refusal(tmp_path, "\n".join(slow.row(size) for size in SIZES))
    assert "too few digits to tell what the link carried" in said


def test_a_list_of_ranks_that_is_cut_off_does_not_change_the_rate(tmp_path: Path) -> None:
    run = Run(9.4e9, ranks=16)
    lines = [
        line
        for line in run.table().splitlines()
        if "Rank" not in line or "Rank  0" in line or "Rank  1" in line
    ]
    assert rate_of(profile_of(tmp_path, "\n".join(lines))) == pytest.approx(9.4e9, rel=0.01)


def test_ranks_in_groups_are_counted_by_group(tmp_path: Path) -> None:
    text = Run(3e6).table()
    more = "\n".join(f"#  Rank {r:2d} Group  1 Pid      9 on h device  0 [0x00] A100" for r in (2, 3))
    found = profile_of(tmp_path, text.replace("# Using devices\n", f"# Using devices\n{more}\n"))
    assert "2 ranks" in found["source"]


def test_rows_of_no_bytes_are_the_time_of_a_call(tmp_path: Path) -> None:
    text = Run(9.4e9, 1e-3, "all_gather", 4).table()
    half = "0.21    0.00    0.00      0     "
    nothing = f"           0             0     float    none      -1     {half}{half}\n"
    found = profile_of(tmp_path, text.replace("# Out of", f"{nothing}# Out of"))
    assert found["delay"] == "1007us"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"# Out of bounds values : 0 OK": "# Out of bounds values : 7 FAILED"},
            "the test failed, 7 values are wrong",
        ),
        ({"    time   algbw": " cputime   algbw"}, "times of the processor (-C)"),
        ({"#wrong": "#wrong    extra"}, "do not fit its columns"),
        (
            {"starting: all_reduce_perf": "starting: a_perf\n# Collective test starting: b_perf"},
            "tests of a and b",
        ),
        (
            {"134217728      33554432     float": "134217728      33554432     float     sum      -1\n#"},
            "do not fit",
        ),
    ],
)
def test_a_table_that_tells_no_link_is_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    text = Run(8e9).table([1 << 20, 1 << 27])
    for old, new in changes.items():
        text = text.replace(old, new)
    assert said in refusal(tmp_path, text)


def test_processes_that_each_tested_alone_measured_no_network(tmp_path: Path) -> None:
    """Built without MPI, every process is rank 0 of its own (NVIDIA/nccl-tests#107)."""
    text = Run(8e9, ranks=1).table([1 << 20, 1 << 27])
    assert "every process tested alone" in refusal(tmp_path, text * 2)


def test_two_tests_of_one_collective_in_one_file_are_refused(tmp_path: Path) -> None:
    text = Run(10e9).table() + Run(5e9).table()
    assert "holds 2 tests" in refusal(tmp_path, text)
    old = "".join(line for line in text.splitlines(keepends=True) if "starting" not in line)
    assert "holds 2 tests" in refusal(tmp_path, old)
    both = f"{json.dumps(Run(10e9).report())}\n{json.dumps(Run(5e9).report())}\n"
    assert "holds 2 JSON documents" in refusal(tmp_path, both)


def test_a_table_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    sizes = [1 << power for power in range(20, 28)]
    lines = Run(9.4e9).table(sizes).splitlines()
    rows = [number for number, line in enumerate(lines) if "float" in line]
    assert "was to go on to 134217728 bytes, and ends at 67108864" in refusal(
        tmp_path, "\n".join(lines[: rows[-1]])
    )
    for begun in ("  134", "134217728     335", "  134217728   33554432    float", "134217728 33554432 fl"):
        said = refusal(tmp_path, "\n".join([*lines[: rows[-1]], begun]))
        assert "is cut off" in said or "do not fit" in said
    bytewise = "\n".join(lines[: rows[-1]]).replace("step: 2(factor)", "step: 1048576(bytes)")
    assert "is cut off" in refusal(tmp_path, bytewise)
    # The last size is there, or the end is, or nothing announces more.
    for text in (lines[: rows[-1] + 1], lines[: rows[2]] + lines[rows[-1] + 1 :], lines[rows[0] : rows[4]]):
        assert rate_of(profile_of(tmp_path, "\n".join(text))) == pytest.approx(9.4e9, rel=0.02)
        (tmp_path / "mylink.yaml").unlink()


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("wrong", ["5", "1e+06"])
def test_a_row_with_wrong_values_is_a_failed_test(tmp_path: Path, wrong: str, headed: bool) -> None:
    lines = Run(9.4e9).table().splitlines()
    at = next(number for number, line in enumerate(lines) if "1048576" in line)
    lines[at] = Run(9.4e9).row(1 << 20, wrong=wrong)
    if not headed:
        lines = [line for line in lines if "busbw" not in line]
    assert "the test failed, values of 1048576 bytes are wrong" in refusal(tmp_path, "\n".join(lines))


def test_a_table_that_broke_off_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = "\n".join([*Run(1e9).top(), "h: Test NCCL failure common.cu:961 'unhandled system error'"])
    said = refusal(tmp_path, text)
    assert "holds no row of nccl-tests" in said
    assert "unhandled system error" in said


def test_sizes_that_take_as_long_as_none_show_no_rate(tmp_path: Path) -> None:
    """A message of 1 kB that takes 2 ms is no link of 4 Mbit/s."""
    for sizes in ([8, 512, 1024], [512, 1024], [1024], [8, 1 << 15]):
        assert "that shows no rate" in refusal(tmp_path, Run(9.4e9, 1e-3).table(sizes))


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "0.00", "1e400", "1,5", ""])
def test_a_time_that_nobody_measured_is_refused(tmp_path: Path, word: str) -> None:
    text = Run(8e9).table([1 << 27])
    time = shown(Run(8e9).seconds(1 << 27) * 1e6, 7)
    assert time in text
    assert "do not fit" in refusal(tmp_path, text.replace(time, word.rjust(7), 1))


def test_its_json_report_is_read(tmp_path: Path) -> None:
    found = profile_of(tmp_path, json.dumps(Run(95e6, 1e-3, "all_gather", 4).report()))
    assert rate_of(found) == pytest.approx(95e6, rel=0.01)
    assert found["delay"] == "1007us"
    assert "5 sizes, 4 ranks, all_gather" in found["source"]
    alone = Run(8e9).report()
    for row in alone["results"]:
        row["out_of_place"] = None  # a replayed trace is in place only
    assert rate_of(profile_of(tmp_path, json.dumps(alone))) == pytest.approx(8e9, rel=0.01)


@pytest.mark.parametrize(
    ("half", "said"),
    [
        ({"cpu_time": 5.0}, "times of the processor"),
        ({"nwrong": 3.0}, "the test failed, values are wrong"),
        ({"time": 0}, "has no time and bandwidth"),
        ({"time": "nan"}, "has no time and bandwidth"),
        ({"bus_bw": None}, "has no time and bandwidth"),
        ({"time": 10.0}, "do not agree"),
    ],
)
def test_a_report_that_tells_no_link_is_refused(tmp_path: Path, half: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, json.dumps(Run(8e9).report(**half)))


@pytest.mark.parametrize(
    "text",
    [
        '{"identifier": "nccl-tests structured output", "version": "2.26.6", "benchmark": [{"33554432": {}}]}',
        '{"#wrong":"0","algBw":0.05,"busBw":0.08,"gpus":4,"inPlace":0,"name":"AllReduce","size":1024,"time":19.2}',
    ],
)
def test_reports_of_forks_are_refused_as_such(tmp_path: Path, text: str) -> None:
    assert "is a report of a fork of nccl-tests" in refusal(tmp_path, text)
