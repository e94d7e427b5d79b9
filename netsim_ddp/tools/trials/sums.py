"""Trials of what the averages add up to: nothing lost, nothing twice, the right scale, the right mean."""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor

from netsim_ddp.tools.trials.bench import SMALL, Bench, Fault, Found, Run
from netsim_ddp.tools.trials.ledger import DIVIDE, ENOUGH, Ledger

STEPS = 4
FLUSH_STEPS, FLUSH_CHUNK = 1500, 25
REPEATS = 64
ROUNDING = 5e-6
"""The share of a repeated gradient that float32 may lose; float16's rounding takes ten times more."""
DRAWS = 200
SIGMAS = 5.0
SHARED_STEPS, ALONE_STEPS = 150, 40


def conserves(bench: Bench) -> Found:
    """Gradients for a few steps, then none, until what was kept back has come."""
    run, ranks = Run(bench, SMALL), bench.group.world_size
    ledger = Ledger(run.numel)
    for step in range(STEPS):
        ledger.note(bench.mean(run.numel, step), run.step(step))
    if run.method.unbiased and run.method.residual_bytes == 0:
        return Found(
            "not judged: it declares `unbiased` and keeps no residual; the check `unbiased` tests it", None
        )
    moved, steps = math.inf, 0
    while max(bench.gather(_rest(ledger))) > ENOUGH and steps < FLUSH_STEPS and moved > DRAINED:
        moved = _flush(bench, run, ledger)
        steps += FLUSH_CHUNK
    text = ledger.judge(ranks, f"{steps} steps after the last one")
    if not ledger.share < ENOUGH and run.method.residual_bytes == 0:
        text += (
            ": it keeps no residual (residual_bytes is 0). Keep what is dropped; or declare `unbiased = True`, if the"
            " mean of its averages is right"
        )
    bench.agree(None if ledger.share < ENOUGH else text)
    return Found(f"all of the gradient has come {steps} steps after the last one (within 1%)")


def _flush(bench: Bench, run: Run, ledger: Ledger) -> float:
    """Some steps without gradient; how much came in them, as a share of what is missing."""
    zero, before = torch.zeros(run.numel), ledger.came.clone()
    for _ in range(FLUSH_CHUNK):
        ledger.note(zero, run.average(zero))
    missing = float((ledger.owed - ledger.came).norm())
    shares: list[float] = bench.gather(float((ledger.came - before).norm()) / missing if missing else 0.0)
    return max(shares)


def _rest(ledger: Ledger) -> float:
    """The missing share; 0 where the sum is no number and waiting cannot help."""
    return ledger.share if math.isfinite(ledger.share) and ledger.share < 1e6 else 0.0


def rounding(bench: Bench) -> Found:
    """One gradient again and again, then none: what rounding takes must be kept and come, too."""
    run, ranks = Run(bench, SMALL), bench.group.world_size
    if run.method.residual_bytes == 0:
        return Found(
            "not judged: it keeps no residual (residual_bytes is 0) for rounding errors to go to", None
        )
    mine, ledger = [_even(bench, run.numel, rank) for rank in range(ranks)], Ledger(run.numel)
    mean = torch.stack(mine).double().mean(0)
    shares = {}
    for step in range(1, 4 * REPEATS + 1):
        ledger.note(mean, run.average(mine[bench.group.rank]))
        shares[step] = ledger.share
    again, rest = Run(bench, SMALL), Ledger(run.numel)
    for _ in range(REPEATS):
        rest.note(mean, again.average(mine[bench.group.rank]))
    moved, steps = math.inf, 0
    while max(bench.gather(_rest(rest))) > ROUNDING / 2 and steps < FLUSH_STEPS and moved > DRAINED:
        moved = _flush(bench, again, rest)
        steps += FLUSH_CHUNK
    if rest.share < ROUNDING:
        return Found(f"of a gradient repeated {REPEATS} times all has come, but {rest.share:.0e}")
    few, many = shares[REPEATS], shares[4 * REPEATS]
    if moved > DRAINED and many < few / 2:
        return Found(
            f"the missing share of a repeated gradient falls with the steps: {few:.2%} after {REPEATS}, {many:.2%}"
            f" after {4 * REPEATS}"
        )
    waited = "although nothing is left to send" if moved <= DRAINED else f"even {steps} steps later"
    raise Fault(
        f"at {ranks} ranks {rest.share:.2g} of a gradient repeated {REPEATS} times never comes, {waited}: what"
        " rounding takes must stay in the residual"
    )


def _even(bench: Bench, numel: int, rank: int) -> Tensor:
    """A gradient of rank ``rank`` whose elements differ by a factor of three at most: no method takes long for a few
    large ones."""
    drawn = bench.gradient(numel, 0, rank)
    return drawn.sign() * (0.5 + drawn.abs() % 1)


DRAINED = 1e-3
"""A chunk of steps without gradient whose updates are less than this share of what is missing: it has ended."""


def scale(bench: Bench) -> Found:
    """One gradient on all ranks, then one on each rank alone: the projection of the averages on it.

    The command compares the first between numbers of ranks: a forgotten division shows in it whatever the method
    drops.
    """
    run, ranks = Run(bench, SMALL), bench.group.world_size
    gradient = bench.gradient(run.numel, 3, rank=0)
    all_ranks = _projection(run, gradient, gradient, SHARED_STEPS)
    weights = [
        _projection(
            Run(bench, SMALL, f"with zeros on all ranks but {rank}"),
            gradient,
            gradient if rank == bench.group.rank else torch.zeros_like(gradient),
            ALONE_STEPS,
        )
        for rank in range(ranks)
    ]
    if not all(math.isfinite(value) for value in (all_ranks, *weights)):
        raise Fault("its averages of finite gradients are not finite")
    middle = median(weights)
    for rank, weight in enumerate(weights):
        if abs(weight - middle) > 0.02 and not 0.6 * middle < weight < 1.6 * middle:
            each = ", ".join(f"{one:.2f}" for one in weights)
            raise Fault(
                f"at {ranks} ranks rank {rank}'s gradient does not count as the others' do (they count {each}): the"
                " mean gives every rank the same weight"
            )
    return Found("every rank counts the same", data=all_ranks)


def _projection(run: Run, direction: Tensor, mine: Tensor, steps: int) -> float:
    """How much of ``direction`` a step's average holds, over ``steps`` of them."""
    came = torch.zeros(run.numel, dtype=torch.float64)
    for _ in range(steps):
        came += run.average(mine)
    wanted = direction.double()
    return float(came.dot(wanted) / wanted.dot(wanted)) / steps


def unbiased(bench: Bench) -> Found:
    """The same gradients many times: the mean of the averages must be theirs, as far as chance allows."""
    run, ranks = Run(bench, SMALL), bench.group.world_size
    if not run.method.unbiased:
        return Found(
            "not declared (`unbiased: ClassVar[bool] = True` in the method asks for this test)", None
        )
    wanted = bench.mean(run.numel, 0)
    total = torch.zeros_like(wanted)
    squares, projections = 0.0, list[float]()
    for _ in range(DRAWS):
        average = run.step(0).double()
        total += average
        squares += float(average.dot(average))
        projections.append(float(average.dot(wanted) / wanted.dot(wanted)))
    mean = total / DRAWS
    times = sum(projections) / DRAWS
    deviation = math.sqrt(sum((each - times) ** 2 for each in projections) / (DRAWS - 1))
    variance = max(0.0, squares / DRAWS - float(mean.dot(mean))) * DRAWS / (DRAWS - 1)
    off, size = float((mean - wanted).norm()), float(wanted.norm())
    chance = math.sqrt(variance / DRAWS)
    margin = SIGMAS * deviation / math.sqrt(DRAWS) + 2e-3
    if not math.isfinite(off):
        raise Fault("its averages of finite gradients are not finite")
    if off > 1e-3 * size and chance < 1e-6 * size and abs(times - 1) < 0.5:
        raise Fault(
            f"it declares `unbiased`, and its averages are {off / size:.1%} off in the same way at every step at"
            f" {ranks} ranks: draw anew at each step"
        )
    if abs(times - 1) > margin:
        advice = "its mean is not that of the gradients"
        if abs(times - ranks) < margin + 0.05 * ranks:
            advice = DIVIDE
        elif abs(times * ranks - 1) < margin + 0.05:
            advice = "it is divided by the number of ranks twice, or something is dropped"
        raise Fault(
            f"it declares `unbiased`, and at {ranks} ranks the mean of {DRAWS} averages is {times:.3f} times that of"
            f" the gradients: {advice}"
        )
    if off > 1e-3 * size and off > math.sqrt(2) * chance:
        raise Fault(
            f"it declares `unbiased`, and the mean of {DRAWS} averages is {off / size:.1%} off the gradients' where"
            f" chance explains {chance / size:.1%}: its error repeats, or is rounded to one side"
        )
    return Found(f"the mean of {DRAWS} averages is the gradients' within chance ({off / size:.1%} off)")
