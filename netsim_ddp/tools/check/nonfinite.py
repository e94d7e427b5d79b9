"""The check of one rank's NaN, inf and -inf: every rank reports it in the same step, and the next one is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from netsim_ddp.tools.check import CheckFailed, require
from netsim_ddp.tools.check.conservation import projection
from netsim_ddp.tools.check.context import SMALL, Context, Passed, Run, digest

BEFORE, AFTER = (0, 1), (3, 4, 5)
BAD = 2
KINDS = {"a NaN": math.nan, "an inf": math.inf, "a -inf": -math.inf}
LARGEST = 3e38
"""Finite in float32; the sum of two is not."""


@dataclass(frozen=True)
class _Case:
    """``spoil(gradient, rank)`` writes what a rank's gradient holds; ``finite``: it is finite before it is summed."""

    text: str
    spoil: Callable[[Tensor, int], None]
    finite: bool = False


def _cases(ranks: int, numel: int) -> Iterator[_Case]:
    where = {"first": 0, "middle": numel // 2, "last": numel - 1}

    def put(value: float, place: int | slice, guilty: int | None) -> Callable[[Tensor, int], None]:
        def spoil(gradient: Tensor, rank: int) -> None:
            if guilty is None or rank == guilty:
                gradient[place] = value

        return spoil

    for kind, value in KINDS.items():
        for rank in range(ranks):
            for name, place in where.items():
                yield _Case(f"{kind} in the {name} place of rank {rank}'s gradient", put(value, place, rank))
        yield _Case(f"{kind} everywhere in rank 0's gradient", put(value, slice(None), 0))
        yield _Case(f"{kind} in every fifth place on all ranks", put(value, slice(3, None, 5), None))

    def opposite(gradient: Tensor, rank: int) -> None:
        if rank < 2:
            gradient[numel // 3] = math.inf if rank else -math.inf

    yield _Case("an inf of rank 1 where rank 0 has a -inf", opposite)
    yield _Case("gradients whose sum overflows", put(LARGEST, numel // 3, None), finite=True)


def nonfinite(context: Context) -> Passed:
    undisturbed = Run(context, SMALL)
    numel, told = undisturbed.numel, set[str]()
    for step in BEFORE:
        undisturbed.step(step)
    reference = torch.stack([undisturbed.step(step).double() for step in AFTER]).sum(0)
    for case in _cases(context.group.world_size, numel):
        run = Run(context, SMALL, f"with {case.text}")
        for step in BEFORE:
            run.step(step)
        gradient = context.gradient(numel, BAD)
        case.spoil(gradient, context.group.rank)
        outcome, _ = run.outcome(gradient)
        rows = context.gather(outcome)
        _judge(case, rows)
        if not case.finite:
            told.add(rows[0].split(" in segment")[0])
        _judge_steps_after(context, run, case, reference)
    return Passed(
        f"a NaN, inf or -inf of any rank, in any place: every rank {' or '.join(sorted(told))}, and right again at the"
        " next step"
    )


def _judge(case: _Case, rows: list[str]) -> None:
    if len(set(rows)) == 1 and (rows[0] != "finite" or case.finite):
        return
    require(
        set(rows) != {"finite"},
        f"{case.text} is swallowed: every rank goes on with a finite average. Let the message say so, then raise on"
        " all ranks or let it through to the average",
    )
    each = "; ".join(f"rank {rank}: {row}" for rank, row in enumerate(rows))
    for rank, row in enumerate(rows):
        require(row != "finite", f"{case.text} is not seen by rank {rank} ({each})")
    raise CheckFailed(f"{case.text}: the ranks do not do the same in the same step ({each})")


def _judge_steps_after(context: Context, run: Run, case: _Case, reference: Tensor) -> None:
    """The steps after: the same everywhere, finite, and about what they would have been."""
    applied, largest = torch.zeros_like(reference), 0.0
    for number, step in enumerate(AFTER, start=1):
        gradient = run.gradient(step)
        outcome, average = run.outcome(gradient)
        rows = context.gather([outcome, None if average is None else digest(average), float(gradient.norm())])
        outcomes, digests, norms = zip(*rows, strict=True)
        after = f"{number} steps after {case.text}" if number > 1 else f"one step after {case.text}"
        if case.finite and len(set(outcomes)) == 1 and outcomes[0] != "finite":
            return  # what was finite may be in the residual, and overflows again
        for rank, each in enumerate(outcomes):
            require(each == "finite", f"{after}, rank {rank}: {each}")
        require(len(set(digests)) == 1, f"{after}, the ranks' averages are not the same bits")
        assert average is not None
        applied += average
        largest = max(largest, *norms)
    if case.finite:
        return
    size = float(reference.norm())
    require(
        float((applied - reference).norm()) <= 3 * size + 3 * largest,
        f"after {case.text}, the next steps' averages are {float(applied.norm()) / size:.1e} times as large as"
        " without: keep it out of the residual",
    )
    wanted = torch.stack([context.mean(run.numel, step) for step in AFTER]).sum(0)
    held, usual = projection(applied, wanted), projection(reference, wanted)
    require(
        held >= 0.2 * usual,
        f"after {case.text}, the next steps' averages hold {held:.2f} of their gradients, and {usual:.2f} without:"
        " the method does not recover",
    )
