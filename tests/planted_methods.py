"""Methods that each break one promise of docs/methods.md, for the tests of ``netsim check``; what they are made from
keeps all of them."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from compressors import QSGD, RandomK, SignFeedback
from my_method import SharedRandom
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from netsim_ddp.communication.exchange import all_gather, all_reduce, summed
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Collective, Group, Local, Method, Segment, Wire
from netsim_ddp.compression.kernels import NonFiniteGradient


class Gathered(Method):
    """No fault: a dense mean by torch's collectives, whose own threads copy what they gather."""

    name = "gathered"

    def __init__(self, flat: FlatGradients, group: Group) -> None:
        super().__init__(flat, group)
        self.rows = torch.zeros(group.world_size, flat.numel)

    def segments(self) -> list[Segment]:
        return [all_gather(self.flat.data, self.rows, self.group), Local("decompress", self._mean)]

    def _mean(self) -> None:
        self.flat.data.copy_(self.rows.mean(0))


# --- what it is made of -----------------------------------------------------------------------------------------


class NoWire(SharedRandom):
    def segments(self) -> list[Segment]:
        return [each for each in super().segments() if isinstance(each, Local)]


class OtherSegment(SharedRandom):
    def segments(self) -> list[Segment]:
        return [*super().segments(), SimpleNamespace(run=lambda: None)]  # type: ignore[list-item]


class FloatBytes(SharedRandom):
    residual_bytes = property(lambda self: self.residual.numel() * 4.0)  # type: ignore[assignment]


# --- the same answer --------------------------------------------------------------------------------------------


class RankDependent(SharedRandom):
    """Divides by a number that is not the same everywhere."""

    def _spread(self) -> None:
        super()._spread()
        self.flat.data.mul_(1 + 1e-6 * self.group.rank)


class PartsAfterTen(SharedRandom):
    after = 10

    def _spread(self) -> None:
        super()._spread()
        if self.step > self.after and self.group.rank == 1:
            self.flat.data[0] += 1e-7


class PartsAfterHundred(PartsAfterTen):
    after = 100


class PartsOnTies(SharedRandom):
    """Agrees until elements of the gradient are equal."""

    def _pick(self) -> None:
        self.tied = bool((self.flat.data.abs() == 1).all())
        super()._pick()

    def _spread(self) -> None:
        super()._spread()
        if self.tied:
            self.flat.data[self.group.rank] += 1


class Hangs(SharedRandom):
    """One rank does not come back."""

    def _pick(self) -> None:
        if self.group.rank == 1 and self.step == 2:
            time.sleep(3600)
        super()._pick()


class HangsInFinish(SharedRandom):
    def segments(self) -> list[Segment]:
        first, wire, last = super().segments()
        assert isinstance(wire, Collective)
        finish = wire.finish

        def hang() -> None:
            finish()
            if self.group.rank == 2:
                time.sleep(3600)

        wire.finish = hang  # type: ignore[method-assign]
        return [first, wire, last]


class Float64Average(SharedRandom):
    @property
    def average(self) -> Tensor:
        return self.flat.data.double()


class NothingOfOne(SharedRandom):
    """k = round(ratio N) is 0 for a small parameter, and 0 elements cannot be averaged."""

    def _pick(self) -> None:
        k = round(0.3 * self.flat.numel)
        if k < 1:
            raise IndexError("no element to send")
        super()._pick()


class EmptyParameter(SharedRandom):
    def _pick(self) -> None:
        for view in self.flat.views:
            view.abs().max()
        super()._pick()


class ZeroNorm(SignFeedback):
    """Divides by the gradient's norm."""

    def _decompress(self) -> None:
        norm = self.compensated.norm()
        super()._decompress()
        self.flat.data.mul_(norm / norm)


class Reseeds(SharedRandom):
    """Draws from everybody's random numbers."""

    def _pick(self) -> None:
        torch.manual_seed(self.step)
        super()._pick()


class DrawsFromNumpy(SharedRandom):
    def _pick(self) -> None:
        np.random.rand()
        super()._pick()


class SeededByOthers(SharedRandom):
    """Puts the global random numbers back, but depends on how they were seeded."""

    def _spread(self) -> None:
        super()._spread()
        with torch.random.fork_rng():
            torch.manual_seed(torch.initial_seed() // 10)
            self.flat.data.mul_(1 + 1e-3 * torch.rand(()))


class CountsForAll(SharedRandom):
    """A step count that all instances share."""

    count: ClassVar[Any] = itertools.count()

    def _spread(self) -> None:
        super()._spread()
        self.flat.data.mul_(1 + 1e-4 * next(self.count))


class HashOrder(SharedRandom):
    """Goes through a set: another order in every process that is not a fork."""

    def _spread(self) -> None:
        super()._spread()
        first = next(iter(set(self.flat.names)))
        self.flat.data.mul_(1 + 1e-3 * self.flat.names.index(first))


class ChangesShapes(SharedRandom):
    def _pick(self) -> None:
        self.flat.shapes.update({name: torch.Size([-1]) for name in self.flat.names})
        super()._pick()


class ReplacesData(SharedRandom):
    def _spread(self) -> None:
        super()._spread()
        self.flat.data = self.flat.data.clone()


class ChangesParameters(SharedRandom):
    def _spread(self) -> None:
        super()._spread()
        with torch.no_grad():
            self.flat.parameters[0].sub_(0.1)


class SetsThreads(SharedRandom):
    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        torch.set_num_threads(3)


class StatisticsMove(SharedRandom):
    """Asked for its state, it loses the average."""

    def state_dict(self) -> dict[str, Any]:
        self.flat.data.zero_()
        return super().state_dict()


class SharesBuffers(SharedRandom):
    """All instances of one k use one buffer: right alone, wrong with two buckets in flight."""

    buffers: ClassVar[dict[int, Tensor]] = {}

    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        room = self.buffers.setdefault(0, torch.zeros(100_000))
        self.values = room[: self.values.numel()]


class FirstBucketOnly(SharedRandom):
    """Takes its gradient for the whole memory's beginning."""

    def _pick(self) -> None:
        start = torch.empty(0).set_(self.flat.data.untyped_storage(), 0, (self.flat.numel,))
        self.flat.data.copy_(start.clone())
        super()._pick()


# --- sums -------------------------------------------------------------------------------------------------------


class Forgets(SharedRandom):
    """Keeps no residual."""

    def _spread(self) -> None:
        super()._spread()
        self.residual.zero_()


class Undivided(SharedRandom):
    def _spread(self) -> None:
        super()._spread()
        self.flat.data.mul_(self.group.world_size)


class DividedTwice(SharedRandom):
    def _spread(self) -> None:
        super()._spread()
        self.flat.data.div_(self.group.world_size)


class SentStays(SharedRandom):
    """What was sent stays in the residual and comes again."""

    def _spread(self) -> None:
        super()._spread()
        self.residual[self.positions] = 0.5 * self.compensated[self.positions]


class AppliedTwice(SharedRandom):
    """One parameter's share of the update is applied twice."""

    def _spread(self) -> None:
        super()._spread()
        self.flat.views[0].mul_(2)


class Float16Lost(SharedRandom):
    """Sends float16 and takes for sent what was not rounded."""

    def _pick(self) -> None:
        super()._pick()
        self.values.copy_(self.values.half())


class Int8Lost(SharedRandom):
    def _pick(self) -> None:
        super()._pick()
        step = self.values.abs().max() / 127
        self.values.copy_((self.values / step).round() * step if step > 0 else self.values)


class Float16Residual(SharedRandom):
    """The residual itself is rounded."""

    def _spread(self) -> None:
        super()._spread()
        self.residual.copy_(self.residual.half())


class BareSigns(Method):
    """The sum of the ranks' signs: no residual, and no division either."""

    name = "bare-signs"

    def segments(self) -> list[Segment]:
        return [Local("compress", self._sign), *summed(self.flat.data, self.group)]

    def _sign(self) -> None:
        self.flat.data.copy_(self.flat.data.sign())


class QuietRank(QSGD):
    """The last rank sends nothing but zeros, and the mean is of the others."""

    def _decompress(self) -> None:
        super()._decompress()
        self.flat.data.mul_(self.group.world_size / max(1, self.group.world_size - 1))

    def _compress(self) -> None:
        if self.group.rank == self.group.world_size - 1 and bool(self.flat.data.isfinite().all()):
            self.flat.data.zero_()
        super()._compress()


class QSGDUndivided(QSGD):
    def _decompress(self) -> None:
        super()._decompress()
        self.flat.data.mul_(self.group.world_size)


class QSGDSameDraws(QSGD):
    """Draws the same random numbers at every step."""

    def generator(self, rank: int) -> torch.Generator:
        self.step = 0
        return super().generator(rank)


class RandomKUnscaled(RandomK):
    """Forgets the factor N / k."""

    def _decompress(self) -> None:
        super()._decompress()
        self.flat.data.mul_(self.values.numel() / self.flat.numel)


# --- NaN and inf ------------------------------------------------------------------------------------------------


class NaNOnly(SharedRandom):
    """Looks for NaN and clamps what is infinite."""

    def _pick(self) -> None:
        nan = bool(self.flat.data.isnan().any())
        self.flat.data.clamp_(-1e6, 1e6)
        super()._pick()
        if nan:
            self.values.fill_(torch.nan)


class InfOnly(SharedRandom):
    """Looks at the largest element: -inf is not the largest."""

    def _pick(self) -> None:
        bad = not bool(self.flat.data.max().isfinite())
        self.flat.data.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        super()._pick()
        if bad:
            self.values.fill_(torch.nan)


class ExceptTheLast(SharedRandom):
    """Looks at all elements but the last."""

    def _pick(self) -> None:
        bad = not bool(self.flat.data[:-1].isfinite().all())
        self.flat.data.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        super()._pick()
        if bad:
            self.values.fill_(torch.nan)


class RankZeroKnows(SharedRandom):
    """Raises on the rank that finds it after the exchange; the others go on."""

    def _pick(self) -> None:
        self.bad = not bool(self.flat.data.isfinite().all())
        self.flat.data.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        super()._pick()

    def _spread(self) -> None:
        super()._spread()
        if self.bad:
            raise NonFiniteGradient("here", -1)


class AloneWithNaN(SharedRandom):
    """Raises while the others wait."""

    def _pick(self) -> None:
        if not self.flat.data.isfinite().all():
            raise ArithmeticError("NaN")
        super()._pick()


class Poisoned(SharedRandom):
    """Lets a NaN into its residual."""

    def _spread(self) -> None:
        self.residual.copy_(self.compensated)[self.positions] = 0
        self.flat.data.zero_()[self.positions] = self.values / self.group.world_size
        self.step += 1


class HugeResidual(SharedRandom):
    """Raises on all ranks, and keeps the largest float in place of the inf."""

    def _spread(self) -> None:
        if not self.values.isfinite().all():
            self.residual.add_(self.compensated.nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9))
        super()._spread()


class NeverAgain(SharedRandom):
    """Gives up for good."""

    gave_up = False

    def _spread(self) -> None:
        if self.gave_up or not self.values.isfinite().all():
            self.flat.data.fill_(0.0 if self.gave_up else torch.nan)
            self.gave_up = True
            return
        super()._spread()


# --- segments ---------------------------------------------------------------------------------------------------


class Smuggles(SharedRandom):
    """Sends a second time where nobody counts."""

    def _spread(self) -> None:
        dist.all_reduce(self.values.clone(), group=self.group.process_group)
        super()._spread()


class SmugglesAFloat(SharedRandom):
    def _spread(self) -> None:
        dist.all_reduce(torch.zeros(1), group=self.group.process_group)
        super()._spread()


class SmugglesInAGroup(SharedRandom):
    """A process group of its own."""

    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        self.own = dist.new_group() if group.world_size > 1 else None

    def _spread(self) -> None:
        dist.broadcast(torch.zeros(1), 0, group=self.own)
        super()._spread()


class SmugglesInAStore(SharedRandom):
    def _pick(self) -> None:
        store: Store = dist.distributed_c10d._get_default_store()
        store.set(f"norm {self.group.rank} {self.step}", "1")
        super()._pick()


class SmugglesInAThread(SharedRandom):
    def _pick(self) -> None:
        def talk() -> None:
            dist.all_reduce(torch.zeros(1), group=self.group.process_group)

        thread = threading.Thread(target=talk)
        thread.start()
        thread.join()
        super()._pick()


class StartsInLocal(SharedRandom):
    """The exchange starts in the local segment; the wire only waits."""

    def segments(self) -> list[Segment]:
        _, wire, last = super().segments()
        assert isinstance(wire, Wire)

        def pick_and_send() -> None:
            self._pick()
            self.work = dist.all_reduce(self.values, group=self.group.process_group, async_op=True)

        waiting = Collective("late", lambda: self.work, wire.payload_bytes, tuple(wire.messages()))
        return [Local("compress", pick_and_send), waiting, last]


class WaitsInLocal(SharedRandom):
    """The wire starts the exchange; the local segment after it waits."""

    def segments(self) -> list[Segment]:
        first, wire, _ = super().segments()
        assert isinstance(wire, Wire)
        size, sent = wire.payload_bytes, tuple(wire.messages())

        def begin() -> None:
            self.work = dist.all_reduce(self.values, group=self.group.process_group, async_op=True)

        def wait_and_spread() -> None:
            assert self.work is not None
            self.work.wait()
            self._spread()

        return [first, Collective("early", begin, size, sent), Local("decompress", wait_and_spread)]


class EndsEarly(SharedRandom):
    """finish() does not wait, and nobody else does."""

    def segments(self) -> list[Segment]:
        first, wire, last = super().segments()
        assert isinstance(wire, Wire)

        def begin() -> None:
            self.work = dist.all_reduce(self.values, group=self.group.process_group, async_op=True)

        return [first, Collective("hasty", begin, wire.payload_bytes, tuple(wire.messages())), last]


class _Worked(SharedRandom):
    """Does ``_work`` around its exchange."""

    def _around(self, start: Callable[[], None], finish: Callable[[], None]) -> list[Segment]:
        first, wire, last = super().segments()
        assert isinstance(wire, Wire)
        begin, end = wire.start, wire.finish

        def started() -> None:
            start()
            begin()

        def finished() -> None:
            end()
            finish()

        wire.start, wire.finish = started, finished  # type: ignore[method-assign]
        return [first, wire, last]

    def segments(self) -> list[Segment]:
        return self._around(lambda: None, lambda: None)


class ComputesInStart(_Worked):
    """All of the selection is in the wire."""

    def segments(self) -> list[Segment]:
        _, wire, last = self._around(self._pick, lambda: None)
        return [wire, last]


class ComputesInFinish(_Worked):
    def segments(self) -> list[Segment]:
        first, wire, _ = self._around(lambda: None, self._spread)
        return [first, wire]


class NumpyInStart(_Worked):
    def segments(self) -> list[Segment]:
        return self._around(lambda: np.sort(self.flat.data.numpy()[:300_000]).sum(), lambda: None)


class ThreadInFinish(_Worked):
    """Another thread computes while the wire waits."""

    def segments(self) -> list[Segment]:
        def work() -> None:
            thread = threading.Thread(target=lambda: np.sort(self.flat.data.numpy()).sum())
            thread.start()
            thread.join()

        return self._around(lambda: None, work)


def _count_in_python() -> None:
    sum(i * i for i in range(200_000))


class PythonInStart(_Worked):
    def segments(self) -> list[Segment]:
        return self._around(_count_in_python, lambda: None)


class GoesOnInAThread(SharedRandom):
    """The local segment returns and its thread selects, until the wire starts."""

    def segments(self) -> list[Segment]:
        _, wire, last = super().segments()
        assert isinstance(wire, Collective)

        def pick() -> None:
            self.thread = threading.Thread(target=self._pick)
            self.thread.start()

        def begin() -> dist.Work | None:
            self.thread.join()
            return dist.all_reduce(self.values, group=self.group.process_group, async_op=True)

        lazy = Collective("lazy", begin, wire.payload_bytes, wire.messages())
        return [Local("compress", pick), lazy, last]


class ComputesInAverage(SharedRandom):
    @property
    def average(self) -> Tensor:
        return self.flat.data * 1.0


class WaitsInStart(_Worked):
    """start() does the whole exchange."""

    def segments(self) -> list[Segment]:
        first, wire, last = super().segments()
        assert isinstance(wire, Wire)
        wire.start, wire.finish = wire.run, lambda: None  # type: ignore[method-assign]
        begin, end = Collective.start, Collective.finish

        def whole() -> None:
            begin(wire)  # type: ignore[arg-type]
            end(wire)  # type: ignore[arg-type]

        wire.start = whole  # type: ignore[method-assign]
        return [first, wire, last]


class StartsInFinish(_Worked):
    """start() does nothing; finish() does the whole exchange."""

    def segments(self) -> list[Segment]:
        first, wire, last = super().segments()
        assert isinstance(wire, Wire)
        begin, end = Collective.start, Collective.finish

        def whole() -> None:
            begin(wire)  # type: ignore[arg-type]
            end(wire)  # type: ignore[arg-type]

        wire.start, wire.finish = lambda: None, whole  # type: ignore[method-assign]
        return [first, wire, last]


# --- bytes and memory -------------------------------------------------------------------------------------------


class _Declares(SharedRandom):
    """Its wire declares ``payload`` and ``sent`` times what it sends."""

    payload = sent = 1.0

    def segments(self) -> list[Segment]:
        first, _, last = super().segments()
        plain = all_reduce(self.values, self.group)

        def begin() -> dist.Work | None:
            return dist.all_reduce(self.values, group=self.group.process_group, async_op=True)

        payload = round(self.payload * plain.payload_bytes)
        messages = tuple(round(self.sent * each) for each in plain.messages())
        return [first, Collective("told", begin, payload, messages), last]


class HalfThePayload(_Declares):
    payload = 0.5


class TwiceThePayload(_Declares):
    payload = 2.0


class HalfTheMessages(_Declares):
    sent = 0.5


class SaysNoResidual(SharedRandom):
    residual_bytes = 0  # type: ignore[assignment]


class HalfTheResidual(SharedRandom):
    @property
    def residual_bytes(self) -> int:
        return self.residual.numel() * 2


class TwiceTheResidual(SharedRandom):
    @property
    def residual_bytes(self) -> int:
        return self.residual.numel() * 8


class Leaks(SharedRandom):
    """Remembers every update."""

    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        self.history: list[Any] = []

    def _spread(self) -> None:
        super()._spread()
        self.history.append(self.values.clone())


class LeaksBytes(Leaks):
    """Somewhat more than 1 MB in 100 steps, and no tensor."""

    def _spread(self) -> None:
        SharedRandom._spread(self)
        self.history.append(bytes(bytearray(20_000)))


# --- state ------------------------------------------------------------------------------------------------------


class NoState(SharedRandom):
    """Saves less than it needs."""

    def state_dict(self) -> dict[str, Any]:
        return {"residual": self.residual.clone(), "step": 0}


class LoadsNoStep(SharedRandom):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.residual.copy_(state["residual"])


class LoadsOntoTheOld(SharedRandom):
    """Right in a new instance only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.residual.add_(state["residual"])
        self.step = state["step"]


class SharesState(SharedRandom):
    """The saved residual is the one at work."""

    def state_dict(self) -> dict[str, Any]:
        return {"residual": self.residual, "step": self.step}


class KeepsTheLoaded(SharedRandom):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.residual = state["residual"]
        self.step = state["step"]


class StateIsNotPlain(SharedRandom):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "codec": pickle.PickleBuffer, "own": SimpleNamespace(a=1)}


class SavingMoves(SharedRandom):
    """Saving is a step."""

    def state_dict(self) -> dict[str, Any]:
        self.step += 1
        return super().state_dict()
