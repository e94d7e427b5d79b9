"""Which collective ``topk`` takes: fewer bytes against fewer rounds."""

from __future__ import annotations

import pytest

from netsim_ddp.communication.methods.topk import choose_collective, collective_seconds


@pytest.mark.parametrize("workers", [3, 4, 8, 64])
def test_many_entries_go_to_their_owners(workers: int) -> None:
    assert choose_collective(workers, 1e6, 1e9, 0.3e-3) == "split"


def test_two_ranks_have_nothing_to_save() -> None:
    assert choose_collective(2, 1e6, 1e9, 0.3e-3) == "allgather"


def test_a_delay_makes_rounds_dearer_than_bytes() -> None:
    payload, rate = 50e3, 1e9
    assert choose_collective(8, payload, rate, 0.3e-3) == "split"
    assert choose_collective(8, payload, rate, 0.3e-3 + 2 * 20e-3) == "allgather"


def test_the_cheaper_one_is_chosen_at_every_number_of_ranks() -> None:
    for workers in range(2, 65):
        for payload in (1e2, 1e4, 1e6):
            cost = {
                name: collective_seconds(name, workers, payload, 1e8, 1e-3) for name in ("split", "allgather")
            }
            assert cost[choose_collective(workers, payload, 1e8, 1e-3)] == min(cost.values())
