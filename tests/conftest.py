"""What all tests need of the process that they run in, which of them run the kernels, and what was skipped."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

from tests import forking

# How long an example takes depends on what else the machine does.
settings.register_profile("netsim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("netsim")

KERNELS = ("netsim_ddp.compression", "netsim_ddp.communication", "tests.distributed.ranks")
"""A test module that imports something of these runs the kernels, but for what it marks ``no_kernels``; others are
marked ``kernels`` by hand."""


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts a background job with Ctrl-C ignored; the commands under test would inherit that and could not be
    interrupted. Processes that run tests at once share one interpreter that forks, which has compiled the kernels
    before they ask for them. A repeat that this machine's host disturbed counts: tests say how many there are."""
    os.environ["NETSIM_DISTURBED"] = "keep"
    if getattr(config.option, "numprocesses", None):
        os.environ[forking.ADDRESS] = forking.address()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run the kernels, before ``-m`` chooses."""
    found: dict[object, bool] = {}
    for item in items:
        module = getattr(item, "module", None)
        if module not in found:
            homes = [getattr(value, "__module__", None) or "" for value in vars(module).values()]
            homes += [getattr(value, "__name__", "") for value in vars(module).values()]
            found[module] = any(isinstance(home, str) and home.startswith(KERNELS) for home in homes)
        if found[module] and item.get_closest_marker("no_kernels") is None:
            item.add_marker("kernels")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add what was skipped, and why, to the file that ``NETSIM_SKIPPED`` names: a line for each test and reason."""
    if path := os.environ.get("NETSIM_SKIPPED"):
        found = Counter(
            (report.nodeid.partition("[")[0], str(report.longrepr[2]).removeprefix("Skipped: "))
            for report in terminalreporter.stats.get("skipped", [])
        )
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{test} ({count}): {why}\n" for (test, why), count in found.items())
