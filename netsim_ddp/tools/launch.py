"""``netsim launch``: make and prove the link, run the program on it, and say what it came to."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import BinaryIO, Literal

from netsim_ddp import __version__
from netsim_ddp.errors import LinkLost, LinkUnavailable
from netsim_ddp.link.launch import Outcome, launch
from netsim_ddp.link.probe.probe import prove
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.launch import Launch, LaunchRank
from netsim_ddp.scenario import Scenario, available_cores
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.experiment import Event, Report
from netsim_ddp.steps.link_record import link_record
from netsim_ddp.tools.programs import check_program
from netsim_ddp.units import counted

Status = Literal["complete", "failed", "interrupted", "timeout"]


def launch_program(
    scenario: Scenario,
    program: Sequence[str],
    out: BinaryIO,
    err: BinaryIO,
    *,
    one_per_node: bool,
    timeout_s: float | None,
    command: Sequence[str],
    report: Report,
    added: Mapping[str, str] | None = None,
) -> tuple[Launch, Outcome]:
    """Run ``program`` on the link that ``scenario`` describes, one process per rank.

    Args:
        added: environment of the ranks.

    Raises:
        UsageError: there is no such program.
        LinkUnavailable: tc cannot make the link here.
        LinkOffTarget: it made one that is not what was asked for.
    """
    check_program(program[0])
    spec = scenario.link_spec()
    report(
        Event(
            "note",
            f"{counted(spec.workers, 'rank')}, each in a network of its own behind {spec.describe()}: "
            "no route to the internet, so data and models must be on this machine",
        )
    )
    try:
        with TcLink(spec) as link:
            measured = prove(link, lambda text: report(Event("warning", text)))
            link.begin()
            counters = link.counters()
            outcome = launch(
                link,
                program,
                out,
                err,
                one_per_node=one_per_node,
                timeout_s=timeout_s,
                added=added,
                defaults={
                    "PYTHONUNBUFFERED": "1",  # a pipe would hold lines back until its buffer is full
                    "OMP_NUM_THREADS": str(max(1, available_cores() // link.spec.workers)),
                    "TORCH_CPP_LOG_LEVEL": "ERROR",  # c10d warns once per connection that there is no resolver
                },
            )
            counters_after, of_link = link.counters(), link_record(link, measured)
    except LinkLost:
        raise
    except LinkUnavailable as error:
        raise LinkUnavailable(f"netsim launch needs tc: {error.message}", hint=_hint(error)) from None
    rows = [
        LaunchRank(
            rank=rank.rank,
            exit_code=rank.exit.code if rank.exit else None,
            signal=rank.exit.signal if rank.exit else None,
            ended_here=rank.ended_here,
            wall_s=rank.wall_s,
            **asdict(after.since(before)),
        )
        for rank, before, after in zip(outcome.ranks, counters, counters_after, strict=True)
    ]
    failed = outcome.first_failure
    endings: list[tuple[Status, bool]] = [
        ("interrupted", outcome.interrupted),
        ("timeout", outcome.timed_out),
        ("failed", failed is not None),
        ("complete", True),
    ]
    return Launch(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        status=next(status for status, holds in endings if holds),
        exit_code=outcome.exit_code,
        first_failing_rank=failed.rank if failed else None,
        environment=environment(),
        command=shlex.join(command),
        program=list(program),
        workers=spec.workers,
        wall_s=outcome.wall_s,
        link=of_link.model_copy(
            update={
                "drops": sum(row.drops for row in rows),
                "retransmits": sum(row.retransmits for row in rows),
            }
        ),
        ranks=rows,
    ), outcome


def _hint(error: LinkUnavailable) -> str:
    """What helps a program that is not netsim's own: only tc shapes the packets of any process."""
    own = "netsim run and netsim train need no tc: --link bucket"
    remedy = error.remedy or (error.hint if "--link bucket" not in (error.hint or "") else None)
    if not error.wanted:
        return f"{remedy or 'netsim doctor says more'}; {own}"
    flags = " and ".join(error.wanted)
    able = f"{own}, which has delay and jitter" if "--loss" not in error.wanted else "no other link has loss"
    return f"{remedy}; or leave {flags} away: the rate needs neither; {able}"
