"""Host-limited: the link's own model of a step, and the rule that holds a cell against it."""

from __future__ import annotations

import pytest

from netsim_ddp.link.bucket.schedule import Sent, message_bytes
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.report.limits import credit_sentences
from netsim_ddp.results.limits import bound, exchange, is_limited
from netsim_ddp.results.record import Bound, Cell
from netsim_ddp.results.summary import summarise
from netsim_ddp.steps.link_model import LinkModel
from netsim_ddp.steps.phases import StepSample
from tests.results_factory import make_cell, make_link

RATE = 10**8
MB = 1_000_000
PEER = Sent("alltoall", (0, MB)), Sent("alltoall", (MB, 0))
LINE_S = message_bytes(MB) * 8 / RATE


def step(begin: float, sent: Sent, *pieces: tuple[str, float], until: float | None = None) -> StepSample:
    """One rank's laps: "send" starts an exchange like ``sent``, "wire" waits for the oldest one."""
    sample, now, started = StepSample([]), begin, []
    for phase, seconds in pieces:
        if phase == "send":
            sample.sent.append(sent)
            started.append(now)
        elif phase == "wire":
            sample.waited.append(len(sample.starts))
            sample.starts.append(started[len(sample.starts)])
        elif until is not None and phase == "compute":
            sample.until.append((len(sample.laps), begin + until))
        sample.laps.append((phase, now, now + seconds))  # type: ignore[arg-type]
        now += seconds
    return sample


def both(*pieces: tuple[str, float], sent: tuple[Sent, Sent] = PEER) -> list[StepSample]:
    return [step(10.0, one, *pieces) for one in sent]


def test_the_model_is_bytes_over_rate_delay_and_the_cost_of_messages() -> None:
    samples = both(("compute", 0.5), ("send", 0.001), ("wire", 0.2))
    found = LinkModel(LinkSpec(2, RATE), {}).step(samples)
    assert found is not None
    assert found.took_s == pytest.approx(0.201)
    assert found.model_s == pytest.approx(LINE_S)
    far = LinkModel(LinkSpec(2, RATE, delay_s=0.02, tcp="ideal"), {"alltoall": 0.003}).step(samples)
    assert far is not None
    assert far.model_s == pytest.approx(LINE_S + 0.04 + 0.003), "Gloo's receiver says first that it is ready"
    windowed = LinkModel(LinkSpec(2, RATE, delay_s=0.02), {"alltoall": 0.003}).step(samples)
    assert windowed is not None
    assert windowed.model_s > far.model_s, "a new connection's window is small"
    assert windowed.line_s == pytest.approx(LINE_S + 0.04), "the least that the line allows knows no window"
    warm = LinkModel(LinkSpec(2, RATE, delay_s=0.02), {"alltoall": 0.003})
    warm.warm(samples, 3)
    warmed = warm.step(samples)
    assert warmed is not None
    assert far.model_s <= warmed.model_s < windowed.model_s
    acknowledged = LinkModel(LinkSpec(2, RATE), {}, aggregate_bytes=3028).step(samples)
    assert acknowledged is not None
    assert acknowledged.model_s == pytest.approx(LINE_S * (1 + 66 / 3028), rel=1e-3)


def test_waiting_for_a_late_rank_or_for_backward_limits_nobody() -> None:
    late = [
        step(10.0, PEER[0], ("send", 0.0), ("wire", 1.0 + LINE_S)),
        step(10.0, PEER[1], ("compute", 1.0), ("send", 0.0), ("wire", LINE_S)),
    ]
    found = LinkModel(LinkSpec(2, RATE), {}).step(late)
    assert found is not None
    assert found.took_s - found.model_s == pytest.approx(0.0, abs=1e-9)
    buckets = both(
        ("compute", 0.1), ("send", 0.0), ("compute", 1.0), ("wire", 0.0), ("send", 0.0), ("wire", LINE_S)
    )
    found = LinkModel(LinkSpec(2, RATE), {}).step(buckets)
    assert found is not None
    assert found.took_s == pytest.approx(1.0 + LINE_S)
    assert found.took_s - found.model_s == pytest.approx(0.0, abs=1e-9)


def test_a_second_exchange_that_waits_for_a_late_first_is_not_forgiven() -> None:
    slow = both(("send", 0.0), ("wire", 2 * LINE_S), ("decompress", 0.05), ("send", 0.0), ("wire", LINE_S))
    found = LinkModel(LinkSpec(2, RATE), {}).step(slow)
    assert found is not None
    assert found.model_s == pytest.approx(2 * LINE_S + 0.05)
    assert found.took_s - found.model_s == pytest.approx(LINE_S)


def test_an_emulated_accelerator_computes_until_its_moment_whatever_was_late() -> None:
    # The first exchange takes 0.3 s too long, into which the accelerator's second bucket becomes full.
    pieces = (
        ("compute", 0.1), ("send", 0.0), ("wire", LINE_S + 0.3), ("compute", 0.0), ("send", 0.0), ("wire", LINE_S),
    )  # fmt: skip
    samples = [step(10.0, one, *pieces) for one in PEER]
    for sample in samples:
        sample.until = [(0, 10.1), (3, 10.1 + LINE_S + 0.2)]
    found = LinkModel(LinkSpec(2, RATE), {}).step(samples)
    assert found is not None
    assert found.took_s - found.model_s == pytest.approx(0.1)


def test_buckets_that_ddp_sent_share_the_line() -> None:
    size = Sent("allreduce", (2 * MB,), 4)
    samples = [StepSample([("compute", 0.0, 1.0)], sent=[size] * 2) for _ in range(2)]
    for sample in samples:
        sample.transfers = [(0.1, 0.4), (0.15, 0.6)]
    found = LinkModel(LinkSpec(2, RATE), {}).step(samples)
    assert found is not None
    assert found.took_s == pytest.approx(0.5)
    assert found.model_s == pytest.approx(4 * LINE_S, rel=0.02), "one line carries both, each twice half"


@pytest.mark.parametrize(
    "spec", [LinkSpec(2, RATE, loss=0.01), LinkSpec(2, RATE, peak_bps=10**9, credit_bytes=9)]
)
def test_there_is_no_model_of_a_link_that_loses_or_changes(spec: LinkSpec) -> None:
    assert LinkModel.knows(LinkSpec(2, RATE), "tc")
    assert not LinkModel.knows(spec, "tc")
    assert not LinkModel.knows(LinkSpec(2, RATE), "host")
    assert not LinkModel.knows(LinkSpec(1, RATE), "tc")


def held(
    took_ms: float, model_ms: float, step_ms: float = 200.0, method: str = "topk", repeats: int = 1
) -> Cell:
    """A cell whose steps took ``took_ms`` for an exchange that its model does in ``model_ms``."""
    cell = make_cell(method, [step_ms] * repeats)
    for repeat in cell.repeats:
        for rank in repeat.ranks:
            rank.steps = [
                one.model_copy(update={"exchange_s": took_ms / 1e3, "model_s": model_ms / 1e3})
                for one in rank.steps
            ]
    return cell


@pytest.mark.parametrize(
    ("took", "model", "limited"),
    [
        (104.9, 100.0, False),
        (105.1, 100.0, True),
        (13.9, 10.0, False),  # 39% more, and less than 2% of the step
        (14.1, 10.0, True),
        (90.0, 100.0, False),
        (0.0, 0.0, False),
    ],
)
@pytest.mark.parametrize("method", ["dense", "fp16", "topk"])
def test_five_percent_of_the_model_or_two_of_the_step(
    took: float, model: float, limited: bool, method: str
) -> None:
    (cell,) = summarise([held(took, model, method=method)])
    assert cell.link.host_limited == limited


def test_the_figure_is_the_tables_the_median_over_steps_then_over_repeats() -> None:
    cell = held(100.0, 100.0, repeats=3)
    for rank in cell.repeats[0].ranks:
        rank.steps[:2] = [one.model_copy(update={"exchange_s": 0.2}) for one in rank.steps[:2]]
    found = exchange(cell)
    assert found is not None
    assert found.took_s == pytest.approx(0.1)
    assert not found.limited


def test_a_probe_below_nine_tenths_of_the_line_limits_every_cell_of_the_link() -> None:
    link = make_link(ceiling_bps=100e6, together_bps=89e6)
    cells = summarise([make_cell("dense", [100], link=link), make_cell("topk", [10], link=link)])
    assert [cell.link.host_limited for cell in cells] == [True, True]
    assert cells[1].summary is not None
    assert (cells[1].summary.speedup, cells[1].summary.speedup_bound) == (None, "none")
    fine = make_link(ceiling_bps=100e6, together_bps=91e6)
    assert not is_limited(make_cell("dense", [100], link=fine))


@pytest.mark.parametrize(
    ("mine", "base", "expected"),
    [(False, False, ""), (True, False, ">="), (False, True, "<="), (True, True, "none")],
)
def test_which_way_a_ratio_is_bounded(mine: bool, base: bool, expected: Bound) -> None:
    cell, baseline = held(90 + 90 * mine, 90), held(90 + 90 * base, 90, method="dense")
    dense, topk = summarise([baseline, cell])
    assert bound(topk, dense) == expected
    assert topk.summary is not None
    assert topk.summary.speedup_bound == expected
    assert (topk.summary.speedup is None) == (expected == "none")


def test_a_file_from_before_the_rule_keeps_its_label() -> None:
    old = make_cell("dense", [100], link=make_link(host_limited=True))
    assert exchange(old) is None
    assert summarise([old])[0].link.host_limited
    judged = held(100.0, 100.0)
    judged.link.host_limited = True
    assert not summarise([judged])[0].link.host_limited, "what was measured is judged anew"


def test_a_step_that_saved_credit_made_too_short_says_by_how_much() -> None:
    cell = held(9.0, 10.0, step_ms=50.0)
    found = exchange(cell)
    assert found is not None
    assert found.early_s == pytest.approx(0.001)
    lines = credit_sentences(summarise([cell]))
    assert len(lines) == 1
    assert "Steps are too short: of topk by 1 ms (2.0%). After a pause the link lets through more" in lines[0]
    assert not credit_sentences(summarise([held(9.95, 10.0, step_ms=50.0)])), "0.05 ms are within 0.1 ms"
    assert not credit_sentences(summarise([held(98.0, 100.0)])), "2% are within 3%"


def test_the_line_is_the_model_without_the_hosts_cost() -> None:
    found = LinkModel(LinkSpec(2, RATE), {"alltoall": 0.003}).step(both(("send", 0.0), ("wire", 0.2)))
    assert found is not None
    assert found.model_s - found.line_s == pytest.approx(0.003)
