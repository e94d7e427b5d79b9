"""Checks of what the averages add up to: nothing lost, nothing twice, the right scale, the right mean."""

from __future__ import annotations

import math
from statistics import fmean, median, stdev

import torch
from torch import Tensor

from netsim_ddp.tools.check import CheckFailed, require
from netsim_ddp.tools.check.context import SMALL, Context, Passed, Run

STEPS = 4
FLUSH_STEPS, FLUSH_CHUNK = 1500, 25
DRAINED = 1e-3
"""A chunk of steps without gradient whose updates are less than this share of what is missing: no more will come."""
REPEATS = 64
MISSING = 0.01
"""The share of the gradient that may be missing: bfloat16's rounding loses 0.3%."""
ROUNDING = 5e-6
"""The share of a repeated gradient that float32 may lose; float16's rounding takes ten times more."""
ALIKE = 0.05
"""The share by which a multiple of the gradient may differ from that multiple and still be called it."""
DRAWS = 200
SIGMAS = 5.0
SHARED_STEPS, ALONE_STEPS = 150, 40
DIVIDE = "divide the sum by the number of ranks"
DIVIDED_TWICE = "it is divided by the number of ranks twice"
APPLIED_TWICE = "take what was sent out of the residual, and apply each entry once"


class Totals:
    """Sums, float64 [N], of the ranks' mean gradients (``wanted``) and of a method's averages (``applied``)."""

    def __init__(self, numel: int) -> None:
        self.wanted, self.applied = (torch.zeros(numel, dtype=torch.float64) for _ in range(2))

    def add(self, mean: Tensor, average: Tensor) -> None:
        self.wanted += mean
        self.applied += average

    @property
    def missing(self) -> float:
        """||wanted - applied|| / ||wanted||: what is missing, or too much."""
        return float((self.wanted - self.applied).norm() / self.wanted.norm())

    def judge(self, ranks: int, when: str) -> str:
        """Returns what is wrong, in words; ``when`` says how long was waited."""
        if not bool(self.applied.isfinite().all()):
            return f"at {ranks} ranks the updates grow without limit: {APPLIED_TWICE}"
        times = projection(self.applied, self.wanted)
        if float((self.applied - times * self.wanted).norm()) < ALIKE * float(self.applied.norm()):
            if abs(times / ranks - 1) < ALIKE:
                return f"at {ranks} ranks {times:.2f} times the mean of the gradients comes: {DIVIDE}"
            if abs(times * ranks - 1) < ALIKE:
                return f"at {ranks} ranks {times:.2f} of the mean of the gradients comes: {DIVIDED_TWICE}"
        forward = self.applied * self.wanted.sign() - self.wanted.abs()
        surplus, lack = (float(part.clamp(min=0).norm() / self.wanted.norm()) for part in (forward, -forward))
        twice = f"at {ranks} ranks {surplus:.1%} of the gradient came twice or more: {APPLIED_TWICE}"
        return twice if surplus > lack else f"at {ranks} ranks {lack:.1%} of the gradient has not come {when}"


def projection(vector: Tensor, direction: Tensor) -> float:
    """Returns how many times ``vector`` holds ``direction``, both float64 [N]."""
    return float(vector.dot(direction) / direction.dot(direction))


def _drain(context: Context, run: Run, totals: Totals, limit: float) -> tuple[int, bool]:
    """Take steps without gradient until less than ``limit`` is missing or no more comes.

    Returns the number of these steps, and whether nothing was left to come.
    """

    def missing() -> float:
        # Where the sum is no number, waiting cannot help.
        share = totals.missing
        return share if math.isfinite(share) and share < 1e6 else 0.0

    zero, steps, moved = torch.zeros(run.numel), 0, math.inf
    while max(context.gather(missing())) > limit and steps < FLUSH_STEPS and moved > DRAINED:
        before = totals.applied.clone()
        for _ in range(FLUSH_CHUNK):
            totals.add(zero, run.average(zero))
        rest = float((totals.wanted - totals.applied).norm())
        moved = max(context.gather(float((totals.applied - before).norm()) / rest if rest else 0.0))
        steps += FLUSH_CHUNK
    return steps, moved <= DRAINED


def conserves(context: Context) -> Passed:
    """Gradients for a few steps, then none, until what was held back has come."""
    run, ranks = Run(context, SMALL), context.group.world_size
    totals, without_residual = Totals(run.numel), run.method.residual_bytes == 0
    for step in range(STEPS):
        totals.add(context.mean(run.numel, step), run.step(step))
    if run.method.unbiased and without_residual:
        return Passed(
            "not judged: it declares `unbiased` and keeps no residual; the check `unbiased` tests it", None
        )
    steps, _ = _drain(context, run, totals, MISSING)
    advice = (
        ": it keeps no residual (residual_bytes is 0). Keep what is dropped; or declare `unbiased = True`, if the"
        " mean of its averages is right"
    )
    text = totals.judge(ranks, f"{steps} steps after the last one") + advice * without_residual
    context.agree(None if totals.missing < MISSING else text)
    return Passed(f"all of the gradient has come {steps} steps after the last one (within 1%)")


def rounding(context: Context) -> Passed:
    """One gradient again and again, then none: what rounding takes must be kept and come, too."""
    run, ranks = Run(context, SMALL), context.group.world_size
    if run.method.residual_bytes == 0:
        return Passed(
            "not judged: it keeps no residual (residual_bytes is 0) for rounding errors to go to", None
        )
    # Elements that differ by a factor of three at most: no method takes long for a few large ones.
    drawn = [context.gradient(run.numel, 0, rank) for rank in range(ranks)]
    gradients = [each.sign() * (0.5 + each.abs() % 1) for each in drawn]
    mine, mean = gradients[context.group.rank], torch.stack(gradients).double().mean(0)
    totals, shares = Totals(run.numel), {}
    for step in range(1, 4 * REPEATS + 1):
        totals.add(mean, run.average(mine))
        shares[step] = totals.missing
    again, rest = Run(context, SMALL), Totals(run.numel)
    for _ in range(REPEATS):
        rest.add(mean, again.average(mine))
    steps, drained = _drain(context, again, rest, ROUNDING / 2)
    if rest.missing < ROUNDING:
        return Passed(f"of a gradient repeated {REPEATS} times all has come, but {rest.missing:.0e}")
    few, many = shares[REPEATS], shares[4 * REPEATS]
    if not drained and many < few / 2:
        return Passed(
            f"the missing share of a repeated gradient falls with the steps: {few:.2%} after {REPEATS}, {many:.2%}"
            f" after {4 * REPEATS}"
        )
    waited = "although nothing is left to send" if drained else f"even {steps} steps later"
    raise CheckFailed(
        f"at {ranks} ranks {rest.missing:.2g} of a gradient repeated {REPEATS} times never comes, {waited}: what"
        " rounding takes must stay in the residual"
    )


def scale(context: Context) -> Passed:
    """One gradient on all ranks, then one on each rank alone: the projection of the averages on it.

    The command compares the first between numbers of ranks: a forgotten division shows in it whatever the method
    drops.
    """
    run, ranks = Run(context, SMALL), context.group.world_size
    gradient = context.gradient(run.numel, 3, rank=0)

    def held(run: Run, mine: Tensor, steps: int) -> float:
        """How many times a step's average holds ``gradient``, over ``steps`` of them."""
        applied = torch.zeros(run.numel, dtype=torch.float64)
        for _ in range(steps):
            applied += run.average(mine)
        return projection(applied, gradient.double()) / steps

    all_ranks = held(run, gradient, SHARED_STEPS)
    weights = [
        held(
            Run(context, SMALL, f"with zeros on all ranks but {rank}"),
            gradient if rank == context.group.rank else torch.zeros_like(gradient),
            ALONE_STEPS,
        )
        for rank in range(ranks)
    ]
    require(
        all(math.isfinite(value) for value in (all_ranks, *weights)),
        "its averages of finite gradients are not finite",
    )
    middle, each = median(weights), ", ".join(f"{one:.2f}" for one in weights)
    for rank, weight in enumerate(weights):
        require(
            abs(weight - middle) <= 0.02 or 0.6 * middle < weight < 1.6 * middle,
            f"at {ranks} ranks rank {rank}'s gradient does not count as the others' do (they count {each}): the"
            " mean gives every rank the same weight",
        )
    return Passed("every rank counts the same", data=all_ranks)


def unbiased(context: Context) -> Passed:
    """The same gradients many times: the mean of the averages must be theirs, as far as chance allows."""
    run, ranks = Run(context, SMALL), context.group.world_size
    if not run.method.unbiased:
        return Passed(
            "not declared (`unbiased: ClassVar[bool] = True` in the method asks for this test)", None
        )
    wanted = context.mean(run.numel, 0)
    total, squares, projections = torch.zeros_like(wanted), 0.0, list[float]()
    for _ in range(DRAWS):
        average = run.step(0).double()
        total += average
        squares += float(average.dot(average))
        projections.append(projection(average, wanted))
    mean = total / DRAWS
    off, size = float((mean - wanted).norm()), float(wanted.norm())
    require(math.isfinite(off), "its averages of finite gradients are not finite")
    times = fmean(projections)
    variance = max(0.0, squares / DRAWS - float(mean.dot(mean))) * DRAWS / (DRAWS - 1)
    chance = math.sqrt(variance / DRAWS)
    margin = SIGMAS * stdev(projections) / math.sqrt(DRAWS) + 2e-3
    require(
        off <= 1e-3 * size or chance >= 1e-6 * size or abs(times - 1) >= 0.5,
        f"it declares `unbiased`, and its averages are {off / size:.1%} off in the same way at every step at"
        f" {ranks} ranks: draw anew at each step",
    )
    advice = "its mean is not that of the gradients"
    if abs(times - ranks) < margin + 0.05 * ranks:
        advice = DIVIDE
    elif abs(times * ranks - 1) < margin + 0.05:
        advice = f"{DIVIDED_TWICE}, or something is dropped"
    require(
        abs(times - 1) <= margin,
        f"it declares `unbiased`, and at {ranks} ranks the mean of {DRAWS} averages is {times:.3f} times that of"
        f" the gradients: {advice}",
    )
    require(
        off <= 1e-3 * size or off <= math.sqrt(2) * chance,
        f"it declares `unbiased`, and the mean of {DRAWS} averages is {off / size:.1%} off the gradients' where"
        f" chance explains {chance / size:.1%}: its error repeats, or is rounded to one side",
    )
    return Passed(f"the mean of {DRAWS} averages is the gradients' within chance ({off / size:.1%} off)")
