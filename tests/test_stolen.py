"""What others took of a virtual machine's processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsim_ddp.stolen import StolenTime


def test_the_share_is_of_all_processors_time_since_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(1000, 100), (1400, 120)])
    monkeypatch.setattr("netsim_ddp.stolen._ticks", lambda: next(ticks))
    assert StolenTime().share == pytest.approx(20 / 400)


def test_a_system_that_does_not_tell_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsim_ddp.stolen._ticks", lambda: None)
    assert StolenTime().share is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat here")
def test_here_it_is_a_share() -> None:
    share = StolenTime().share
    assert share is not None
    assert 0 <= share <= 1
