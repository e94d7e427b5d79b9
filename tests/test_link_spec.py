"""A link as it is asked for: rates per rank and direction, and what they allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from netsim_ddp.errors import UsageError
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.spec import SEGMENT_WIRE, Change, LinkSpec, RankRate, goodput
from netsim_ddp.link.tc.plan import ROOMS, Shapes, plan, script, shape_for
from netsim_ddp.scenario import build_scenario

RATES = st.integers(10**6, 10**10)
SPECS = TypeAdapter(LinkSpec)
"""A specification as a job carries it to another host."""


@st.composite
def specs(draw: st.DrawFn) -> LinkSpec:
    workers = draw(st.integers(1, 8))
    ranks = draw(st.sets(st.integers(0, workers - 1)))
    slow = tuple(RankRate(rank, draw(RATES), draw(RATES)) for rank in sorted(ranks))
    return LinkSpec(workers, draw(RATES), draw(st.none() | RATES), slow)


@given(specs())
def test_a_link_survives_json(spec: LinkSpec) -> None:
    assert SPECS.validate_json(SPECS.dump_json(spec)) == spec


@given(specs())
def test_the_slowest_side_bounds_every_pair(spec: LinkSpec) -> None:
    ranks = range(spec.workers)
    sides = [rate for rank in ranks for rate in (spec.up(rank), spec.down(rank))]
    assert spec.slowest_bps == min(sides)
    assert spec.fastest_bps == max(sides)
    assert all(spec.pair_bps(a, b) >= spec.slowest_bps for a in ranks for b in ranks)
    assert spec.ceiling_bps == goodput(min(sides))


@given(specs())
def test_both_mechanisms_give_each_side_its_own_rate(spec: LinkSpec) -> None:
    bucket, shapes = LinkClock(spec), Shapes.of(spec)
    for rank in range(spec.workers):
        assert bucket._rates[0][rank] == shapes.up[rank].rate_bps == spec.up(rank)
        assert bucket._rates[0][spec.workers + rank] == shapes.down[rank].rate_bps == spec.down(rank)


def test_what_a_rank_sends_is_shaped_at_its_own_end_and_what_it_receives_at_the_bridges() -> None:
    spec = LinkSpec(2, 10**8, 2 * 10**7, (RankRate(1, 10**6, 5 * 10**6),))
    steps = plan(spec, Shapes.of(spec), ["a", "b"], None)
    found = {
        (step.rank, step.argv[4]): step.argv[step.argv.index("rate") + 1]
        for step in steps
        if step.argv[:2] == ("tc", "qdisc")
    }
    assert found == {
        (None, "v0"): "20000000bit",
        (0, "eth0"): "100000000bit",
        (None, "v1"): "5000000bit",
        (1, "eth0"): "1000000bit",
    }


@pytest.mark.parametrize("rate", [10**6, 10**7, 5 * 10**7, 10**8, 2 * 10**8, 10**9, 10**10])
@pytest.mark.parametrize("workers", [2, 8])
def test_room_for_a_late_host_widens_the_bucket_and_no_packet(rate: int, workers: int) -> None:
    shapes = [shape_for(rate, workers, room) for room in ROOMS]
    assert {(shape.rate_bps, shape.limit, shape.gso) for shape in shapes} == {
        (rate, shapes[0].limit, shapes[0].gso)
    }
    bursts = [shape.burst for shape in shapes]
    assert bursts == sorted(bursts)
    assert (bursts[-1] - SEGMENT_WIRE) * 8 / rate > 1e-3
    assert (bursts[-1] - bursts[0]) * 8 / rate < 2e-3  # a message after idle is early by no more


def test_a_link_says_what_is_not_equal() -> None:
    assert LinkSpec(4, 10**9).describe() == "1 Gbit/s"
    assert LinkSpec(4, 10**9, 10**9).describe() == "1 Gbit/s"
    slow = (RankRate(3, 10**7, 10**7), RankRate(5, 1, 1))
    assert LinkSpec(4, 10**8, 2 * 10**7, slow).describe() == "100 Mbit/s up, 20 Mbit/s down; rank 3 10 Mbit/s"


def test_flags_become_a_link() -> None:
    found = build_scenario(
        {"bandwidth": "100mbit:20mbit", "slow_rank": ["3=10mbit", "1=1gbps:5mbps"], "workers": "4"}
    )
    slow = (RankRate(1, 10**9, 5 * 10**6), RankRate(3, 10**7, 10**7))
    assert found.link_spec() == LinkSpec(4, 10**8, 2 * 10**7, slow)
    again = build_scenario(found.model_dump(mode="json") | {"bandwidth": "1gbps"})
    assert again.link_spec() == LinkSpec(4, 10**9, None, slow)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"slow_rank": "3"}, "--slow-rank '3' is not RANK=RATE"),
        ({"slow_rank": ["9=1gbps"]}, "slow rank 9 does not exist: 4 workers are ranks 0 to 3"),
        ({"slow_rank": ["1=1gbps", "1=2gbps"]}, "--slow-rank names rank 1 twice"),
        ({"slow_rank": ["1=5"]}, "--slow-rank '5' has no unit"),
        ({"bandwidth": "5mbps:"}, "--bandwidth '5mbps:' is not UP:DOWN"),
        ({"bandwidth": "1gbps:0"}, "--bandwidth down '0' must be more than zero"),
    ],
)
def test_a_link_that_nobody_can_have_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_scenario(values)
    assert caught.value.message.startswith(said)


def test_a_timeline_from_the_start_on_is_what_the_link_starts_with() -> None:
    """Not the rate that --bandwidth has by default, which never holds then: for tc, the bucket, the probe and words."""
    changes = (Change(0, 10**7, 2 * 10**6), Change(1, 5 * 10**6, 10**6))
    spec = LinkSpec(2, 10**9, slow_ranks=(RankRate(1, 7 * 10**6, 10**9),), timeline=changes, period_s=2)
    assert (spec.rate_bps, spec.down_bps) == (10**7, 2 * 10**6)
    shapes, bucket = Shapes.of(spec), LinkClock(spec)
    assert [shape.rate_bps for shape in shapes.up] == bucket._rates[0][:2] == [10**7, 7 * 10**6]
    assert [shape.rate_bps for shape in shapes.down] == bucket._rates[0][2:] == [2 * 10**6, 2 * 10**6]
    assert [now[:2] for now in bucket._rates] == [[10**7, 7 * 10**6], [5 * 10**6, 5 * 10**6]]
    assert spec.at_start.slowest_bps == 2 * 10**6
    assert spec.varies
    assert spec.describe().startswith("10 Mbit/s up, 2 Mbit/s down; rank 1")
    assert spec.describe().endswith("; 1 change by 1 s, again after 2 s")
    lines = [line for line in script(spec) if " tbf " in line]
    assert not any("1000000000bit" in line for line in lines)
    assert sum("rate 10000000bit" in line for line in lines) == 1
    assert SPECS.validate_json(SPECS.dump_json(spec)) == spec


def test_a_timeline_that_never_changes_the_link_is_a_steady_link() -> None:
    for changes in ((Change(0, 10**7, 10**7), Change(1, 10**7, 10**7)), (Change(5, 10**7, 10**7),)):
        spec = LinkSpec(2, 10**7, timeline=changes, period_s=9)
        assert not spec.varies
        assert LinkClock(spec)._steady
        assert not any(line.startswith("sleep") for line in script(spec))
