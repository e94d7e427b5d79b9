"""One step of a hook: gradients come in DDP's buckets, parts of them are exchanged, averages go back into the buckets.

A part is exchanged as soon as its gradients are there, and on all ranks in the same order. Where several parts make up
a step, a thread of its own carries the exchange out while backward goes on: then no call of the hook waits for another
rank, but the last one. That thread must not use torch's collectives, whose order is that of all of a program's calls
(SyncBatchNorm has some in backward): exchanges by them are started in the hook calls and ended in the last.
"""

import threading
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from netsim_ddp.communication.applied import Given, HookCall, when_backward_ends
from netsim_ddp.communication.averaging import own_modes
from netsim_ddp.communication.executor import InOrder, pipeline, stages, starts_first
from netsim_ddp.communication.flat import FlatGradients, rescale, unscale
from netsim_ddp.communication.segments import LARGEST, Method, segments_of
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.errors import UsageError

OWNED_S = 1.0
"""How often a thread that waits for gradients looks whether anybody can still give it any."""


class Parts:
    """The parts of a flat gradient that are exchanged one by one, in the order in which backward fills them.

    Args:
        cuts: of each part, its first parameter and the one behind its last.
        methods: of each part.
        name: the methods', on the command line.
    """

    def __init__(
        self, flat: FlatGradients, cuts: list[tuple[int, int]], methods: list[Method], name: str
    ) -> None:
        self.flat, self.cuts, self.methods = flat, cuts, methods
        self.came: set[int] | None = None
        """Places of the parameters that DDP's buckets hold, which are the same in every step."""
        self.place = {id(parameter): i for i, parameter in enumerate(flat.parameters)}
        self.part_of = [0] * len(flat.parameters)
        for number, (first, last) in enumerate(cuts):
            self.part_of[first:last] = [number] * (last - first)
        for method in methods:
            method.provisional = len(cuts) > 1
        self.keeps_units = not all(method.stateless for method in methods)
        self.stages = [stages(segments_of(method, name)) for method in methods]
        self.wires = [wire for part in self.stages for stage in part for wire in stage.wires]
        # On a device, a thread would have to follow the streams that its gradients come from.
        self.in_thread = (
            len(cuts) > 1 and flat.data.device.type == "cpu" and not any(wire.ordered for wire in self.wires)
        )
        self.executor = InOrder()

    def holding(self, place: int) -> tuple[Method, int]:
        """The method that averages the parameter at ``place``, and where its gradient begins there."""
        part = self.part_of[place]
        method = self.methods[part]
        return method, int(method.flat.offsets[place - self.cuts[part][0]])


class HookStep:
    """A step that DDP's calls make up. Making it ends the one before: if that was left open, it has never been.

    Args:
        scale: of the loss, which gradients carry.
        unfrozen: names of parameters that DDP may not know yet, because they are trained since it was made.
        owner: the hook's state; a step that is open when nobody holds it any more has been given up.
    """

    def __init__(self, parts: Parts, scale: float, unfrozen: set[str], owner: object) -> None:
        self.owner = weakref.ref(owner)
        self._parts, self._scale, self._unfrozen = parts, scale, unfrozen
        count = len(parts.flat.parameters)
        self._absent = set(range(count))
        self._gradients: list[Tensor | None] = [None] * count
        """Where they lie in DDP's buckets."""
        self._missing = [last - first for first, last in parts.cuts]
        self._calls: list[HookCall] = []
        self.refused: NonFiniteGradient | None = None
        """What a rank found, if the step's gradients become NaN."""
        self._borrowed = [
            scale == 1.0 and method.borrows and method.flat.lendable for method in parts.methods
        ]
        for method in parts.methods:
            method.roll_back()
            method.flat.lent = None
            method.limit = LARGEST / scale
        order = pipeline if parts.in_thread or len(parts.cuts) == 1 else starts_first
        self._turns: Iterator[int] = order(parts.executor, parts.stages)
        self._wanted = next(self._turns, None)
        self._thread = _Thread(self) if parts.in_thread else None

    def receive(self, call: HookCall) -> None:
        """The gradients of the call's parameters are in DDP's bucket.

        Raises:
            UsageError: the buckets are another DDP model's than those of the step before.
        """
        parts = self._parts
        for parameter, gradient in zip(call.parameters, call.gradients, strict=True):
            place = parts.place[id(parameter)]
            if parts.came is not None and place not in parts.came:
                self._refuse_other_model(place, "now and not in the step before")
            part = parts.part_of[place]
            if self._borrowed[part]:
                self._gradients[place] = gradient
            else:
                unscale(gradient.view_as(parameter), self._scale, parts.flat.views[place])
            self._absent.discard(place)
            self._missing[part] -= 1
            call.places.append(place)
        self._calls.append(call)
        # The last part waits for the last bucket, whose call waits for everything anyway.
        self._go_on(len(parts.cuts) - 1)

    def complete(self) -> None:
        """Every gradient that will come is there, and one that DDP was told to ignore counts as zero: end the step.

        Raises:
            UsageError: the buckets are another DDP model's than those of the step before.
            ValueError: DDP does not exchange a parameter that it should.
        """
        parts = self._parts
        came = set(range(len(parts.flat.parameters))) - self._absent
        if parts.came is not None and came != parts.came:
            self._refuse_other_model(min(parts.came - came), "in the step before and not now")
        parts.came = came
        for place in self._absent:
            if (name := parts.flat.names[place]) in self._unfrozen:
                raise ValueError(
                    f"{name} was unfrozen after DDP was made, which does not exchange it: wrap the model in DDP anew "
                    "and register a hook with state.bind(model.named_parameters())"
                )
            parts.flat.views[place].zero_()
        self._missing = [0] * len(parts.cuts)
        self._go_on(len(parts.cuts))
        if self._thread is not None:
            self._thread.join()
        skipped = any(method.skipped for method in parts.methods)
        for method in parts.methods:
            if self.refused or skipped:
                method.roll_back()
            else:
                method.commit()
        if not self.refused and not skipped:
            self._write()
        for method in parts.methods:
            method.flat.lent = None

    def fill(self, value: float) -> None:
        """Make every gradient of a step that was refused or skipped ``value``."""
        for call in self._calls:
            call.buffer.fill_(value)

    def answer(self) -> None:
        """Tell DDP that its buckets hold what parameters get."""
        for call in self._calls:
            call.answer()
        self._calls = []

    def abandon(self) -> None:
        """This step will not end: let go of what is under way, whose messages the next step must not meet."""
        if self._thread is not None:
            self._thread.abandon()
        self._parts.executor.drain()

    def _go_on(self, end: int) -> None:
        """Exchange the parts before ``end`` that are there and whose turn it is."""
        if self._thread is not None:
            self._thread.complete = next((n for n, missing in enumerate(self._missing) if missing), end)
            return
        while self._wanted is not None and self._wanted < end and not self._missing[self._wanted]:
            self.advance()

    def advance(self) -> int | None:
        """Exchange the part whose turn it is, up to the next one's turn, which is returned; None where there is none.
        All ranks refuse a step at the same piece of it."""
        assert self._wanted is not None
        parts, part = self._parts, self._wanted
        if self._borrowed[part]:
            parts.methods[part].flat.lend(self._gradients[slice(*parts.cuts[part])])
        try:
            self._wanted = next(self._turns, None)
        except NonFiniteGradient as error:
            self._wanted, self.refused = None, error
            parts.executor.drain()
        return self._wanted

    def _write(self) -> None:
        """Put the averages where DDP looks for them."""
        parts, scale = self._parts, self._scale
        averages: list[Tensor] = []
        for method in parts.methods[::-1]:  # in parameter order
            flat = method.flat
            averages += flat.lent or flat.views_of(method.fitted_average(scale))
        parameters = parts.flat.parameters
        given: list[tuple[int, Given]] = []
        for call in self._calls:
            for place, gradient in zip(call.places, call.gradients, strict=True):
                average, parameter = averages[place], parameters[place]
                if average is not gradient:
                    rescale(average.view_as(gradient), scale, gradient)
                given.append((place, Given(parameter, average, gradient)))
        when_backward_ends(lambda: _keep_unapplied(parts, given, scale))

    def _refuse_other_model(self, place: int, when: str) -> None:
        self.abandon()
        raise UsageError(
            f"DDP exchanges {self._parts.flat.names[place]} {when}: this state serves several DDP models, and what one "
            "of them does not take would be lost",
            hint="make one HookState for each DDP model; where the same model was wrapped anew, call "
            "state.bind(model.named_parameters()) first",
        )


def _keep_unapplied(parts: Parts, given: list[tuple[int, Given]], scale: float) -> None:
    """The backward pass is over: what DDP did not take goes back to where it came from."""
    with torch.no_grad():
        for place, each in given:
            rest = each.not_applied(scale)
            if rest is not None and rest.numel():
                method, begin = parts.holding(place)
                method.keep_back(begin, rest.reshape(-1))


class _Thread:
    """Carries a step's exchanges out beside the backward pass."""

    def __init__(self, step: HookStep) -> None:
        self._step, self._complete, self._given_up = step, 0, False
        self._more = threading.Condition()
        self._error: BaseException | None = None
        self._device = step._parts.flat.data.device
        # A daemon: who ends the program need not wait for ranks that do not come.
        self._thread = threading.Thread(target=self._run, name="netsim-exchange", daemon=True)
        self._thread.start()

    @property
    def complete(self) -> int:
        """How many parts have their gradients, from the first one on."""
        return self._complete

    @complete.setter
    def complete(self, parts: int) -> None:
        with self._more:
            self._complete = parts
            self._more.notify()

    def join(self) -> None:
        """Wait for the end, and raise what was raised there."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """No more gradients will come: wait for the exchanges whose gradients came, which the other ranks begin too."""
        with self._more:
            self._given_up = True
            self._more.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with own_modes(self._device):
                begun = 0
                while self._arrives(begun) and self._step.advance() is not None:
                    begun += 1
        except BaseException as error:  # noqa: BLE001 - the hook's last call raises it
            self._error = error

    def _arrives(self, part: int) -> bool:
        """Wait for the gradients of ``part``; False where they will not come: the next step says so, or the hook's
        state is gone, as after a backward pass that failed in its middle and was the last."""
        with self._more:
            while not self._more.wait_for(lambda: self._given_up or self._complete > part, OWNED_S):
                if self._step.owner() is None:
                    return False
            return self._complete > part
