"""The tests' own interpreter forks fork servers, under xdist too: else every test would wait for torch, and nobody
would notice. What it must leave alone, tests/distributed/test_check.py sees: hashes that have a seed of their own."""

from __future__ import annotations

from netsim_ddp.link.mechanisms import choose
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.scenario import Settings
from tests.forking import Fork, forking


def test_a_fork_server_is_forked_and_ends_as_a_started_one_does() -> None:
    with forking(), choose(LinkSpec(2, 10**9), "none", print) as link:
        with Launcher(link, Settings(threads=1, timeout_s=5.0), environment={"PYTHONPATH": "/"}) as launcher:
            server = launcher._server._child  # type: ignore[union-attr]
            assert isinstance(server, Fork)
            assert server.poll() is None
        assert server.poll() == 0
