"""Microbenchmarks of the exchange and of a whole step, on two real ranks; run by ``make bench``.

What the link adds is ``netsim run``'s to measure: here nothing throttles the ranks' network.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks import pair
from tests.benchmarks.pair import Pair

ROUNDS = 30
METHODS = {
    "dense": ("dense", {}),
    "fp16": ("fp16", {}),
    "allgather": ("topk-allgather", {"ratio": 0.01}),
    "split-reduce": ("topk", {"ratio": 0.01, "collective": "split"}),
}


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Iterator[Pair]:
    job, method = request.param
    with Pair(job, *METHODS[method]) as pair:
        yield pair
    assert not any(process.is_alive() for process in pair.processes)


def with_ranks(job: str, methods: list[str]) -> pytest.MarkDecorator:
    """One benchmark per method; the ranks of each live as long as it does."""
    return pytest.mark.parametrize(
        "ranks", [(getattr(pair, job), method) for method in methods], ids=methods, indirect=True
    )


@with_ranks("exchange", list(METHODS))
def test_exchange(benchmark, ranks):
    benchmark.extra_info |= {"bytes": ranks.facts["bytes"]}
    benchmark.pedantic(ranks.step, setup=ranks.prepare, rounds=ROUNDS, warmup_rounds=3)


@with_ranks("training_step", ["dense", "split-reduce"])
def test_step(benchmark, ranks):
    benchmark.pedantic(ranks.step, setup=ranks.prepare, rounds=ROUNDS, warmup_rounds=3)
