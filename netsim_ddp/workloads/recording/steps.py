"""What a training does, as a row of steps: told of each forward, backward and optimizer as it comes, this says where
one step ends and the next begins, which are watched, and which do not count.

A step ends with the last ``optimizer.step`` before the next forward (or backward) begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from netsim_ddp.results.recording import Pass, Step
from netsim_ddp.workloads.recording.clocks import DeviceClock, HostClock, Mark

Kind = Literal["warm-up", "on", "off", "gradients"]
WARM_UP = 3
"""Steps before the first that is watched: the model is found in one, DDP rebuilds its buckets in the second, and the
third shows in which order gradients come."""
SETS = 3
"""Spaced steps whose gradients are kept, and whose times are not."""


def schedule(steps: int, sets: int) -> list[Kind]:
    """``steps`` steps with the clock on and as many with it off, in turns of on, off, off, on: a training that does
    two things in turn, or slows down as it goes on, is the same in both. ``sets`` others are spaced from the second to
    the last, so that a training that ends early has one."""
    turns: tuple[Kind, ...] = ("on", "off", "off", "on")
    timed = [turns[number % 4] for number in range(2 * steps)]
    for number in reversed(range(sets)):
        timed.insert(1 + number * (2 * steps - 1) // max(sets - 1, 1), "gradients")
    before: list[Kind] = ["warm-up"] * WARM_UP
    return before + timed


@dataclass
class Open:
    """A step that is going on, or what is known of one that has ended. ``gradients``: by parameter, when its gradient
    was there in the last pass; ``full`` and ``done`` by bucket, where a communication hook tells."""

    number: int
    kind: Kind
    begin: Mark
    forward: Mark = None
    passes: list[tuple[Mark, Mark, Mark]] = field(default_factory=list)
    gradients: dict[int, Mark] = field(default_factory=dict)
    full: dict[int, Mark] = field(default_factory=dict)
    done: dict[int, Mark] = field(default_factory=dict)
    optimizer: Mark = None
    end: Mark = None
    spoilt: bool = False
    evaluated: bool = False


class Watch:
    """One rank's steps. A step is left out, and another takes its place, where its gradients were not finite, a pass
    ended in an error, the model was evaluated in it and not in the one before, or ``judge``, which is asked between two
    steps, says so."""

    def __init__(
        self, clock: HostClock | DeviceClock, plan: Sequence[Kind], judge: Callable[[Open], bool]
    ) -> None:
        self.clock, self.plan, self._judge = clock, list(plan), judge
        self.closed: list[Open] = []
        self.open = Open(1, self.plan[0], clock.mark())  # step 0 is the one that was seen first
        self.in_backward = 0
        self.left_out = 0
        self._evaluated_before = False

    @property
    def over(self) -> bool:
        return not self.plan

    @property
    def timing(self) -> bool:
        """Whether the step that goes on is one whose moments are asked for."""
        return self.open.kind in ("on", "warm-up")

    def forward(self) -> None:
        """A forward pass of the model begins, of which a backward pass may follow."""
        self._next()
        if self.open.forward is None:
            self.open.forward = self.clock.mark()

    def evaluation(self) -> None:
        """A forward pass that no backward follows."""
        self._next()
        self.open.evaluated = True

    def backward_begins(self) -> Mark:
        self.in_backward += 1
        if self.in_backward > 1:
            return None
        self._next()
        self.open.gradients.clear()
        self.open.full.clear()
        return self.clock.mark()

    def backward_ends(self, began: Mark, *, failed: bool = False) -> None:
        self.in_backward -= 1
        if self.in_backward:
            return
        step = self.open
        step.passes.append((began if step.forward is None else step.forward, began, self.clock.mark()))
        step.forward = step.optimizer = None
        step.spoilt |= failed

    def optimizer_begins(self) -> None:
        if self.open.passes and self.open.optimizer is None:
            self.open.optimizer = self.clock.mark()

    def optimizer_ends(self) -> None:
        if self.open.passes:
            self.open.end = self.clock.mark()

    def skipped(self) -> None:
        """The optimizer was not asked, since gradients were not finite: GradScaler's step."""
        if self.open.passes and self.open.optimizer is None:
            self.open.optimizer = self.open.end = self.clock.mark()
            self.open.spoilt = True

    def _next(self) -> None:
        """Go on to the next step where this one has ended."""
        step = self.open
        if step.end is None or self.in_backward > 1 or self.over:
            return
        spoilt = step.spoilt or (step.evaluated and not self._evaluated_before)
        self._evaluated_before = step.evaluated
        if (spoilt or not self._judge(step)) and step.kind != "warm-up":
            self.left_out += 1
        else:
            self.plan.pop(0)
            self.closed.append(step)
        kind: Kind = self.plan[0] if self.plan else "off"
        self.open = Open(step.number + 1, kind, step.end)

    def finish(self) -> None:
        """The program ends: the step that has been through its optimizer is one more."""
        self.in_backward = 0
        self._next()


def lengths(watch: Watch, kind: Kind) -> list[float]:
    """Of the steps of ``kind``, seconds."""
    return [watch.clock.between(step.begin, step.end) for step in watch.closed if step.kind == kind]


def as_step(step: Open, clock: HostClock | DeviceClock, buckets: Sequence[Sequence[int]]) -> Step:
    """``step`` in seconds.

    Args:
        buckets: of each bucket its parameters, by number.
    """

    def at(mark: Mark) -> float:
        return max(clock.between(step.begin, mark), 0.0)

    moments = [at(mark) for each in step.passes for mark in each]
    for number in range(1, len(moments)):  # events of several streams may be a little out of order
        moments[number] = max(moments[number], moments[number - 1])
    began, ended = moments[-2], moments[-1]
    optimizer = ended if step.optimizer is None else max(at(step.optimizer), ended)

    def inside(mark: Mark) -> float | None:
        return None if mark is None else min(max(at(mark), began), ended)

    full = []
    for number, bucket in enumerate(buckets):
        known = [inside(step.gradients[each]) for each in bucket if each in step.gradients]
        full.append(
            inside(step.full.get(number)) or max((each for each in known if each is not None), default=None)
        )
    return Step(
        number=step.number,
        begin_s=clock.on_host(step.begin),
        passes=[
            Pass(forward_s=forward, backward_s=backward, end_s=end)
            for forward, backward, end in zip(moments[::3], moments[1::3], moments[2::3], strict=True)
        ],
        full_s=full,
        done_s=[
            # An exchange that takes no time is through before the reducer, which began it, says that this was full.
            None if (done := inside(step.done.get(number))) is None else max(done, full[number] or 0.0)
            for number in range(len(buckets))
        ],
        optimizer_s=optimizer,
        end_s=max(at(step.end), optimizer),
    )
