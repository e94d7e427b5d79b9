"""Two results held against each other: what is found, what is not made up, and which code the command ends with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from netsim_ddp.errors import NothingComparable, UsageError
from netsim_ddp.report.terminal.compare import markdown, render_comparison
from netsim_ddp.results.compare import Rules, compare
from netsim_ddp.results.comparison import Comparison
from netsim_ddp.results.files import save
from netsim_ddp.results.record import Cell, RepeatRecord, Result
from netsim_ddp.results.sides import side, side_of, sides_of
from netsim_ddp.results.training_record import EpochRecord
from netsim_ddp.results.verdicts import FLOOR, Judgement, Times, judge
from tests.commands import answer, complaint
from tests.results_factory import make_cell, make_link, make_rank, make_result

ENVIRONMENT = {"cpu": "a processor", "torch": "2.6", "numpy": "2", "numba": "0.61", "cores": 2}
Draw = Callable[[], np.ndarray]


def noisy(seed: int, repeats: int = 7, share: float = 0.03) -> Draw:
    generator = np.random.default_rng(seed)
    return lambda: generator.normal(1, share, repeats)


def result(draw: Draw, *, slower: float = 1.0, **fields: Any) -> Result:
    """Three methods at two bandwidths; ``slower`` multiplies the steps of topk at 1 Gbit/s."""
    cells = []
    for rate in (10**8, 10**9):
        for method, ms in (("dense", 5e10 / rate + 50), ("topk", 80.0), ("fp16", 3e10 / rate + 50)):
            factor = slower if (method, rate) == ("topk", 10**9) else 1.0
            link = make_link(requested_bps=rate, shape=f"{rate / 1e9:g} Gbit/s")
            cells.append(cell(method, ms * factor * draw(), bandwidth_bps=rate, link=link))
    return whole(cells, **fields)


def cell(method: str, runs: Any, *, sha: str = "a" * 64, tx: float = 1e6, **fields: Any) -> Cell:
    made = make_cell(method, [float(ms) for ms in runs], steps=2, tx=tx, residual=4000, **fields)
    for repeat in made.repeats:
        for rank in repeat.ranks:
            rank.parameters_sha256 = sha
    return made


def whole(cells: Sequence[Cell], **fields: Any) -> Result:
    made = make_result(list(cells))
    scenario = {"seed": 0, "steps": 2, "warmup": 1, "batch_size": 32, **fields.pop("scenario", {})}
    return made.model_copy(update={"environment": ENVIRONMENT, "scenario": scenario, **fields})


def held(base: Result, new: Result, **rules: Any) -> Comparison:
    return compare(side(base, "base.json"), side(new, "new.json"), Rules(**rules))


def judge_times(base: Sequence[float], new: Sequence[float], floor: float = FLOOR) -> Judgement:
    (found,) = judge([Times(base, new, floor)])
    return found


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {pair.name: row.verdict for pair in comparison.pairs for row in pair.times}


@pytest.mark.parametrize("repeats", [1, 3, 7])
def test_a_file_and_itself_do_not_differ(repeats: int) -> None:
    one = result(noisy(0, repeats, 0.2))
    found = held(one, one, fail_on=frozenset({"regression", "inconclusive", "missing"}))
    assert set(verdicts(found).values()) == {"no change"}
    assert found.failures == []
    assert not any(row.changed for pair in found.pairs for row in pair.figures)


def test_a_planted_slowdown_is_found_and_named() -> None:
    found = held(result(noisy(1)), result(noisy(2), slower=1.2))
    assert len(found.failures) == 1
    assert re.match(r"topk \| 1 Gbit/s: it is (1[7-9]|2[0-3])% slower", found.failures[0])
    back = held(result(noisy(2), slower=1.2), result(noisy(1)))
    assert back.failures == []
    assert verdicts(back)["topk | 1 Gbit/s"] == "faster"


def test_noise_alone_raises_few_alarms() -> None:
    generator = np.random.default_rng(7)
    alarms, empty = 0, whole([])
    for _ in range(200):
        noise = 100 * generator.normal(1, 0.06, (4, 7))
        cells = [make_cell(name, runs, ranks=1, steps=1) for name, runs in zip("abab", noise, strict=True)]
        base, new = (empty.model_copy(update={"cells": side}) for side in (cells[:2], cells[2:]))
        alarms += bool(held(base, new, only=frozenset({"times"})).failures)
    assert alarms <= 10


def test_no_change_is_a_finding_and_not_its_absence() -> None:
    quiet = judge_times(
        [1.0, 1.01, 0.99, 1.0, 1.005, 0.995, 1.0], [1.0, 1.012, 0.99, 1.0, 1.004, 0.996, 1.001]
    )
    assert quiet.verdict == "no change"
    assert quiet.change.low > 0.95
    loud = judge_times([1.0, 1.2, 0.8, 1.1, 0.9, 1.3, 0.7], [1.01, 1.2, 0.8, 1.1, 0.9, 1.3, 0.7])
    assert loud.verdict == "inconclusive"
    assert loud.why == "noise hides it"
    assert loud.detectable is not None
    assert loud.detectable > 0.3
    assert loud.repeats is None or loud.repeats > 50


def test_a_change_below_the_floor_is_none() -> None:
    base = [1.0, 1.001, 0.999, 1.0005, 0.9995, 1.0002, 0.9998]
    new = [1.02 * value for value in base]
    found = judge_times(base, new, floor=0.05)
    assert found.p is not None
    assert found.p < 0.001
    assert found.verdict == "no change"
    assert judge_times(base, new, floor=0.01).verdict == "slower"


def test_few_repeats_are_refused_with_what_would_do() -> None:
    found = judge_times([1.0, 1.01, 1.02], [1.5, 1.51, 1.52])
    assert found.verdict == "inconclusive"
    assert found.why == "3 against 3 repeats; a claim needs 5 against 5 (1 comparison)"
    assert found.repeats == 5
    assert found.detectable is None
    single = judge_times([1.0], [2.0])
    assert (single.verdict, single.repeats) == ("inconclusive", None)


def test_limits_are_per_figure_and_a_phase_is_judged_when_it_has_one() -> None:
    base, new = result(noisy(1)), result(noisy(2), slower=1.2)
    assert held(base, new, limits={"median": 0.3}).failures == []
    found = held(base, new, limits={"communicate": 0.2, "median": 0.3})
    assert [row.figure for row in found.pairs[0].times] == ["median", "communicate"]
    assert any("communicate is" in failure for failure in found.failures), found.failures
    assert all("topk | 1 Gbit/s" in failure for failure in found.failures)


def test_cells_are_matched_by_all_that_they_are() -> None:
    runs = [100.0] * 3
    base = whole([cell("topk", runs, params={"ratio": 0.01}, axes={"compute": "50ms"}, model="simple_cnn")])
    other: list[dict[str, Any]] = [
        {"params": {"ratio": 0.02}}, {"workers": 4}, {"bandwidth_bps": 10**8}, {"execution": "replayed"},
        {"overlap": True}, {"threads": 1}, {"device": "cuda"}, {"backend": "nccl"}, {"model": "resnet50"},
        {"axes": {"compute": "10ms"}}, {"substituted": "h100"},
    ]  # fmt: skip
    same = {"params": {"ratio": 0.01}, "axes": {"compute": "50ms"}, "model": "simple_cnn"}
    for fields in other:
        with pytest.raises(NothingComparable):
            held(base, whole([cell("topk", runs, **{**same, **fields})]))
    for link in ({"mechanism": "bucket"}, {"shape": "1 Gbit/s; delay 5 ms"}):
        with pytest.raises(NothingComparable, match=r"(mechanism|link) is"):
            held(base, whole([cell("topk", runs, **same, link=make_link(**link))]))
    assert len(held(base, whole([cell("topk", runs, **same, id="another")])).pairs) == 1


def test_what_no_cell_says_must_agree_too() -> None:
    base = result(noisy(0))
    for key, value in (("batch_size", 16), ("compute_s", 0.05)):
        new = base.model_copy(update={"scenario": {**base.scenario, key: value}})
        old = base.model_copy(update={"scenario": {"compute_s": None, **base.scenario}})
        with pytest.raises(NothingComparable, match=key):
            held(old, new)


def test_nothing_measured_is_nothing_comparable() -> None:
    empty = whole([make_cell("dense", [], error="failed")])
    with pytest.raises(NothingComparable, match=r"no cell was measured in new\.json"):
        held(result(noisy(0)), empty)


def changed(base: Result, new: Result) -> list[str]:
    found = held(base, new, only=frozenset({"bytes"}))
    return [row.figure for pair in found.pairs for row in pair.figures if row.changed]


def test_bytes_are_held_exactly_where_nothing_lets_them_vary() -> None:
    base = whole([cell("dense", [100] * 2, tx=1e6)])
    assert changed(base, base) == []
    # A counter at an interface sees acknowledgements; what the method handed over it does not.
    assert changed(base, whole([cell("dense", [50], tx=1e6 + 2)])) == ["payload bytes"]
    assert changed(base, whole([cell("dense", [50], tx=1.02e6)])) == ["payload bytes", "sent bytes"]
    charged = make_link("bucket")
    one, other = (whole([cell("dense", [100], tx=tx, link=charged)]) for tx in (1e6, 1e6 + 1))
    assert "charged bytes" in changed(one, other)


def test_bytes_of_what_was_selected_may_vary_where_the_bits_may() -> None:
    base = whole([cell("topk", [100], tx=1e6)])
    new = whole([cell("topk", [100], tx=1.01e6, sha="b" * 64)])
    assert changed(base, new) == ["payload bytes", "parameters"]
    plain = {"environment": {**ENVIRONMENT, "numba": None}}  # not used, which is known
    assert changed(base.model_copy(update=plain), new.model_copy(update=plain)) == [
        "payload bytes",
        "parameters",
    ]
    assert changed(base, new.model_copy(update=plain)) == []
    elsewhere = new.model_copy(update={"environment": {**ENVIRONMENT, "cpu": "another"}})
    assert changed(base, elsewhere) == []
    reseeded = new.model_copy(update={"scenario": {**new.scenario, "seed": 1}})
    assert changed(base, reseeded) == []
    assert changed(base, whole([cell("topk", [100], tx=1.1e6)], environment={})) == [
        "payload bytes",
        "sent bytes",
    ]


def test_a_figure_that_is_gone_is_missing() -> None:
    base = result(noisy(0))
    new = whole([each.model_copy() for each in base.cells[:4]])
    rules = {"fail_on": frozenset({"missing"})}
    found = held(base, new, **rules)
    assert found.only_in_base == ["topk | 1 Gbit/s", "fp16 | 1 Gbit/s"]
    assert len(found.failures) == 2
    bare = base.model_copy(deep=True)
    for each in bare.cells:
        for repeat in each.repeats:
            for rank in repeat.ranks:
                rank.parameters_sha256 = None
    assert held(base, bare, **rules).failures[0] == "dense | 0.1 Gbit/s: no parameters any more"


def trained(accuracies: Sequence[float], method: str = "topk", *, hours: float = 1.0) -> Result:
    repeats = [
        RepeatRecord(
            seed=seed,
            ranks=[make_rank([], tx=0)],
            epochs=[
                EpochRecord(
                    epoch=1, steps=10, learning_rate=0.1, train_loss=1.0, validation_loss=2 - accuracy,
                    validation_accuracy=accuracy, elapsed_s=hours * (1 + seed / 1000), tx_bytes=1000,
                )
            ],
        )
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    made = make_cell(method, [])
    return whole([made.model_copy(update={"repeats": repeats})], kind="training")


def test_accuracies_are_compared_seed_by_seed() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(0.9, 0.03, 10)  # seeds differ by more than the methods do
    worse, same = base - 0.02 + generator.normal(0, 0.003, 10), base + generator.normal(0, 0.003, 10)
    found = held(trained(base), trained(worse), only=frozenset({"scores"}))
    row = found.pairs[0].scores[0]
    assert (row.verdict, row.seeds) == ("worse", 10)
    assert row.difference == pytest.approx(-2, abs=0.4)
    assert found.failures[0].startswith("topk: accuracy is ")
    assert held(trained(base), trained(same)).pairs[0].scores[0].verdict == "no change"
    assert held(trained(base), trained(base)).failures == []
    assert held(trained(worse), trained(base)).pairs[0].scores[0].verdict == "better"
    few = held(trained(base[:2]), trained(generator.normal(0.9, 0.03, 2))).pairs[0].scores[0]
    assert few.verdict == "inconclusive"
    assert few.repeats is None or few.repeats > 2
    with pytest.raises(NothingComparable):
        held(trained(base), whole([make_cell("topk", [100])]))


def benchmark_file(path: Path, times: dict[str, Sequence[float]], **extra: Any) -> Path:
    benchmarks = [
        {"fullname": name, "stats": {"data": list(map(float, data))}, "extra_info": extra}
        for name, data in times.items()
    ]
    path.write_text(json.dumps({"machine_info": {"cpu": {"brand_raw": "x"}}, "benchmarks": benchmarks}))
    return path


def test_files_of_pytest_benchmark_are_compared_by_name(tmp_path: Path) -> None:
    draw = noisy(3, 40, 0.02)
    base = benchmark_file(tmp_path / "a.json", {"t.py::one": draw(), "t.py::two": draw()}, bytes=100)
    new = benchmark_file(tmp_path / "b.json", {"t.py::two": 1.3 * draw(), "t.py::new": draw()}, bytes=101)
    found = compare(side_of(base), side_of(new), Rules())
    assert [pair.name for pair in found.pairs] == ["t.py::two"]
    row = found.pairs[0].times[0]
    assert (row.verdict, row.base_runs) == ("slower", 10), "rounds of one process are no independent samples"
    assert found.failures[1] == "t.py::two: bytes changed from 100 to 101"
    assert (found.only_in_base, found.only_in_new) == (["t.py::one"], ["t.py::new"])


def processes(folder: Path, name: str, medians: Sequence[float]) -> list[Path]:
    draw = noisy(5, 40, 0.005)
    return [
        benchmark_file(folder / f"{name}{i}.json", {"one": value * draw()}) for i, value in enumerate(medians)
    ]


def test_what_differs_from_process_to_process_is_no_change(tmp_path: Path) -> None:
    def of(base: Sequence[float], new: Sequence[float]) -> Comparison:
        sides = (sides_of(processes(tmp_path, name, values)) for name, values in (("a", base), ("b", new)))
        return compare(*sides, Rules())

    one = of([1.0], [1.08])
    assert one.pairs[0].times[0].verdict == "slower"
    assert "cannot show how far processes of the same code differ" in one.notes[0]
    two = of([1.0, 1.05], [1.08, 1.12])
    assert two.pairs[0].times[0].verdict == "inconclusive"
    assert "processes of one side differ" in two.pairs[0].times[0].why
    assert "only where even the closest two" in two.notes[0]
    assert of([1.0, 1.01], [1.08, 1.12]).pairs[0].times[0].verdict == "slower"
    five = of([1.0, 1.05, 1.02, 1.01, 1.03], [1.12, 1.08, 1.1, 1.09, 1.11])
    assert (five.pairs[0].times[0].verdict, five.pairs[0].times[0].base_runs) == ("slower", 5)
    assert five.notes == []


def test_files_of_one_side_are_more_repeats(tmp_path: Path) -> None:
    bases = [written(tmp_path / f"base{i}.json", result(noisy(i, 3))) for i in (1, 2)]
    heads = [written(tmp_path / f"head{i}.json", result(noisy(9 + i, 3), slower=1.3)) for i in (1, 2)]
    words = [word for path in bases for word in ("--base", path)]
    done = answer(["compare", *words, *(word for path in heads for word in ("--head", path))], tmp_path)
    assert done.returncode == 5
    assert "topk | 1 Gbit/s: it is" in done.stderr


def test_benchmarks_without_their_rounds_say_how_to_save_them(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"machine_info": {}, "benchmarks": [{"fullname": "x", "stats": {"median": 1}}]})
    )
    said = complaint(["compare", str(path), str(path)], tmp_path)
    assert said.endswith("has no rounds (save them: pytest --benchmark-json FILE keeps stats.data)")
    rounds = [{"fullname": "x", "stats": {"data": data}} for data in ([0.1, "x"], [], [True], [-1.0])]
    for benchmarks in (3, [3], *([each] for each in rounds)):
        path.write_text(json.dumps({"machine_info": {}, "benchmarks": benchmarks}))
        with pytest.raises(UsageError, match=re.escape(str(path))):
            side_of(path)


def written(path: Path, value: Result) -> str:
    save(value, path)
    return str(path)


def test_the_command_ends_with_the_code_that_says_it(tmp_path: Path) -> None:
    base = written(tmp_path / "base.json", result(noisy(1)))
    slow = written(tmp_path / "slow.json", result(noisy(2), slower=1.2))
    other = written(tmp_path / "other.json", whole([cell("topk", [100], workers=2)]))
    done = answer(["compare", base, base], tmp_path, env={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("6 cells compared: 6 no change (6 comparisons, Holm at 5%)\n")
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = answer(["compare", base, slow, "--json", "-", "--markdown", "out.md"], tmp_path)
    assert done.returncode == 5
    assert done.stderr.startswith("netsim: topk | 1 Gbit/s: it is ")
    document = Comparison.model_validate_json(done.stdout)
    assert len(document.failures) == 1
    assert "fails" in (tmp_path / "out.md").read_text().splitlines()[0]
    assert "workers is 8 workers in" in complaint(["compare", base, other], tmp_path, code=6)
    done = answer(["compare", base, slow, "--only", "bytes"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_junit_file_is_red_where_the_command_is(tmp_path: Path) -> None:
    """Whatever the code: a regression, a cell that is missing, nothing comparable, a file that cannot be read."""
    base = written(tmp_path / "base.json", result(noisy(1)))
    slow = written(tmp_path / "slow.json", result(noisy(2), slower=1.2))
    other = written(tmp_path / "other.json", whole([cell("topk", [100], workers=2)]))
    some = result(noisy(1))
    less = written(tmp_path / "less.json", some.model_copy(update={"cells": some.cells[:-1]}))
    cases = {
        (base, base): 0,
        (base, slow): 5,
        (base, slow, "--only", "bytes"): 0,
        (base, slow, "--fail-above", "median:50%"): 0,
        (base, less): 0,
        (base, less, "--fail-on", "missing"): 5,
        (base, other): 6,
        (base, "gone.json"): 2,
    }
    for words, code in cases.items():
        assert answer(["compare", *words, "--junit", "out.xml"], tmp_path).returncode == code
        root = ElementTree.parse(tmp_path / "out.xml").getroot()
        failures = [case for case in root.iter("testcase") if case.find("failure") is not None]
        assert int(root.get("failures", "")) == len(failures) == (code != 0), words
        assert int(root.get("tests", "")) == len(list(root.iter("testcase")))
    done = answer(["compare", base, slow, "--junit", "-"], tmp_path)
    root = ElementTree.fromstring(done.stdout)
    (red,) = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert (red.get("name"), done.returncode) == ("topk | 1 Gbit/s", 5)


BAD = {
    "a b --fail-above median": "--fail-above 'median' is not FIGURE:NN% (write for example median:10%)",
    "a b --fail-above median:10": "--fail-above 'median:10' is not a limit in percent (write median:10%)",
    "a b --fail-above medan:10%": "--fail-above 'medan' is not known here (did you mean 'median'?",
    "a b --fail-on slow": "--fail-on 'slow' is not known here (known: inconclusive, missing, regression)",
    "a b --only byte": "--only 'byte' is not known here (did you mean 'bytes'?",
    "a b --json - --markdown -": "--json - and --markdown - both want stdout (name a file for one of them)",
    "a b --markdown - --junit -": "--markdown - and --junit - both want stdout (name a file for one of them)",
    "a b --junit no/x.xml": "cannot write no/x.xml: no folder no (name a file in a folder you can write to)",
    "a b --json no/x.json": "cannot write no/x.json: no folder no (name a file in a folder you can write to)",
    "a b": "cannot read a: No such file or directory",
    "a": "two sides are needed to compare (write netsim compare BASE.json NEW.json, or --base A.json",
    "a b --base c": "files stand both with and without --base and --head (write netsim compare BASE.json",
    "--base a --head b --head b": "b is given twice on one side (each file is one set of repeats)",
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_flag_gets_one_line(tmp_path: Path, words: str) -> None:
    assert complaint(["compare", *words.split()], tmp_path).startswith(BAD[words])


def text_of(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width, record=True, highlight=False, file=open("/dev/null", "w"))  # noqa: SIM115
    render_comparison(comparison, console)
    return console.export_text()


def test_the_text_says_what_would_decide() -> None:
    text = text_of(held(result(noisy(1, 3, 0.1)), result(noisy(2, 3, 0.1))))
    joined = " ".join(text.split())
    assert "3 against 3 repeats; a claim needs 5 against 5 (6 comparisons); about" in joined
    assert "runs of each side would decide" in joined
    text = " ".join(text_of(held(result(noisy(1, 7, 0.1)), result(noisy(2, 7, 0.1)))).split())
    assert "noise hides it; a change of" in text


def test_single_runs_show_a_ratio_without_an_interval() -> None:
    text = text_of(held(result(noisy(1, 1)), result(noisy(2, 1)), only=frozenset({"times"})))
    assert re.search(r"\d ms +\d\.\d\d +1  inconclusive", text)
    assert "(" not in text.split("verdict")[1].split("dense | 0.1 Gbit/s: 1 against")[0]


def test_no_line_is_longer_than_the_terminal() -> None:
    base, new = result(noisy(1)), result(noisy(2), slower=1.3)
    for width in (80, 100, 160):
        assert max(len(line) for line in text_of(held(base, new), width).splitlines()) <= width


def test_names_from_a_file_stay_text() -> None:
    evil = "topk<script>alert(1)</script>|`x`\n# [a](b)\x1b[31m"
    one = whole([cell(evil, [100] * 7)])
    two = whole([cell(evil, [150.0 + i for i in range(7)], tx=9e6)])
    found = held(one, two)
    page = markdown(found)
    assert "<script" not in page
    assert "\n# " not in page
    table = next(line for line in page.splitlines() if "alert" in line and line.startswith("| "))
    assert len(re.findall(r"(?<!\\)\|", table)) == 7, "one row of six cells"
    assert "\x1b" not in text_of(found) + page


def test_measuring_on_another_machine_is_said() -> None:
    base = result(noisy(1))
    new = base.model_copy(update={"environment": {**ENVIRONMENT, "cpu": "another"}})
    assert "cpu a processor and another" in held(base, new).notes[0]
    assert held(base, base).notes == []
    busy = base.model_copy(update={"environment": {**ENVIRONMENT, "load_1min": 3.0}})
    idle = base.model_copy(update={"environment": {**ENVIRONMENT, "load_1min": 0.2}})
    assert "different loads (load average 0.2 and 3.0" in held(idle, busy).notes[0]
    assert held(idle, idle).notes == []
    for text in (text_of(held(base, new)), markdown(held(base, new))):
        assert text.index("different machines") < text.index("cells compared"), "before any verdict"


def test_numbers_of_a_comparison_are_json() -> None:
    found = held(trained([0.9]), trained([0.8]))
    document = json.loads(found.model_dump_json())
    assert document["pairs"][0]["scores"][0]["low"] is None, "one seed has no interval"
    assert math.isfinite(document["pairs"][0]["scores"][0]["difference"])
