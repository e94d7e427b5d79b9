"""A repeat that a virtual machine's host disturbed is run again, and the try that it took least from counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from netsim_ddp.errors import RankError, UsageError
from netsim_ddp.methods.spec import parse_method
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import notes
from netsim_ddp.scenario import Scenario
from netsim_ddp.steps.experiment import Experiment
from tests.results_factory import make_cell

SETTINGS = {"model": "simple_cnn", "workers": 2, "bandwidth": "1gbps", "compute": "1ms", "baseline": "none"}


class Played(Experiment[Scenario]):
    """Repeats whose steps take 1 s, 2 s, ..., and during which the host takes what ``shares`` says."""

    def __init__(self, methods: int, repeats: int, **more: Any) -> None:
        named = [parse_method(f"topk,ratio=0.{1 + number}") for number in range(methods)]
        scenario = Scenario.model_validate(
            SETTINGS | {"methods": named, "repeats": repeats} | more
        ).resolved()
        super().__init__(scenario, command=["netsim"], report=lambda _: None, save=lambda _: None)
        self.undisturbed = True
        self.ran: list[tuple[int, int]] = []
        self.fails_at = -1

    def _have_data(self) -> None:
        return

    def start(self, pool: Pool) -> None:
        del pool
        self.result.cells = [make_cell(each.name, [], id=each.id) for each in self.scenario.methods]

    def repeat(self, index: int, number: int) -> None:
        self.ran.append((index, number))
        if len(self.ran) - 1 == self.fails_at:
            raise RankError("rank 1 ended")
        self.result.cells[index].repeats += make_cell("topk", [1e3 * len(self.ran)]).repeats

    def summarise(self, cells: Sequence[Cell]) -> list[Cell]:
        return list(cells)

    def notes(self) -> Sequence[str]:
        return notes(self.result.cells)

    def kept(self) -> list[list[float]]:
        return [[each.ranks[0].steps[0].wall_s for each in cell.repeats] for cell in self.result.cells]


def _taking(shares: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """During each repeat the host takes the next one of ``shares``, and nothing after the last."""
    monkeypatch.delenv("NETSIM_DISTURBED", raising=False)
    told: Iterator[float] = iter(shares)

    class Told:
        @property
        def share(self) -> float:
            return next(told, 0.0)

    monkeypatch.setattr("netsim_ddp.steps.experiment.StolenTime", Told)


@pytest.mark.parametrize(
    ("shares", "ran", "kept"),
    [
        ([0.0, 0.04, 0.0, 0.0], [0, 1, 1, 0], [[1.0, 4.0], [2.0, 3.0]]),
        ([0.2, 0.01, 0.0, 0.0, 0.0], [0, 0, 1, 1, 0], [[2.0, 5.0], [3.0, 4.0]]),
        ([0.2, 0.1, 0.3, 0.3, 0.0, 0.0], [0, 0, 0, 1, 1, 0], [[2.0, 6.0], [4.0, 5.0]]),
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3], [0, 0, 0, 1, 1, 0], [[1.0, 6.0], [4.0, 5.0]]),
    ],
)
def test_the_least_disturbed_try_counts_whatever_it_measured(
    shares: list[float], ran: list[int], kept: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most two more tries of a repeat, and in all half as many as there are repeats."""
    _taking(shares, monkeypatch)
    played = Played(2, 2)
    found = played.run()
    assert [index for index, _ in played.ran] == ran
    assert played.kept() == kept
    again = sum(repeat.tries > 1 for cell in found.cells for repeat in cell.repeats)
    assert any("ran again" in text for text in found.warnings) == bool(again)


def test_a_reader_is_told_what_was_disturbed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _taking([0.2, 0.3, 0.15, 0.25], monkeypatch)
    found = Played(2, 1).run()
    assert [repeat.stolen_share for cell in found.cells for repeat in cell.repeats] == [0.2, 0.15]
    said = "\n".join(found.warnings)
    assert "1 of 2 repeats ran again" in said
    assert "during 2 of 2 repeats that count" in said
    assert "up to 20%" in said


def test_a_try_that_fails_leaves_what_was_measured_before(monkeypatch: pytest.MonkeyPatch) -> None:
    _taking([0.2], monkeypatch)
    played = Played(2, 1)
    played.fails_at = 1
    with pytest.raises(RankError):
        played.run()
    assert played.kept() == [[1.0], []]


def test_none_is_run_again_after_its_time_or_with_a_trace_or_where_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _taking([0.2] * 9, monkeypatch)
    late = Played(2, 1, time_budget_s=1e-9)
    late.run()
    assert [index for index, _ in late.ran] == [0, 1]
    traced = Played(2, 1)
    traced._trace = lambda _: None
    traced.run()
    assert [index for index, _ in traced.ran] == [0, 1]
    monkeypatch.setenv("NETSIM_DISTURBED", "keep")
    kept = Played(2, 1)
    kept.run()
    assert [index for index, _ in kept.ran] == [0, 1]
    monkeypatch.setenv("NETSIM_DISTURBED", "never")
    with pytest.raises(UsageError, match="NETSIM_DISTURBED=never is not one of repeat, keep"):
        Played(2, 1).run()


@pytest.mark.parametrize(("before", "while_probing", "warned"), [(0.1, 3.0, False), (3.0, 0.1, True)])
def test_the_load_of_the_probe_is_no_other_programs(
    before: float, while_probing: float, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([before, before])
    monkeypatch.setattr("os.getloadavg", lambda: (next(loads, while_probing),) * 3)
    _taking([], monkeypatch)
    played = Played(2, 1)
    start = played.start

    def probing(pool: Pool) -> None:
        start(pool)
        played.warn_of_contention(0)

    monkeypatch.setattr(played, "start", probing)
    assert any("busy already" in text for text in played.run().warnings) == warned
