"""A method is a list of segments, local work and wire operations, built once and run every step.

Keeping the two apart is what lets the bench time them, replay them and test them one by one.
"""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist

from netsim_ddp.communication.exchange_errors import named
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.errors import UsageError
from netsim_ddp.link.bucket.schedule import Sent


@dataclass(frozen=True)
class CodecWork:
    """What a piece compresses and decompresses, so that the times of another device can be put in its place."""

    selected: tuple[int, int] | None = None
    """``(n, k)``: k entries selected of n, with feedback."""
    encoded: tuple[int, ...] = ()
    """The entries of each message written."""
    decoded: tuple[int, ...] = ()
    """The entries of each message read and added."""


@dataclass(frozen=True)
class Local:
    """Work of this rank alone, counted as ``phase``; ``work`` where it is all the codec's."""

    phase: Literal["compress", "decompress"]
    run: Callable[[], None]
    work: CodecWork | None = None


class Wire(ABC):
    """One exchange with the other ranks, in two halves so that other work can go on between them.

    Every rank starts and finishes its exchanges in the same order.
    """

    operation: str
    method: str = ""
    """Whose exchange it is, as a user knows the method."""
    group: Group | None = None
    """The ranks that take part, for the error of an exchange that does not end."""

    ordered: bool = True
    """Whether it has its place in the order of all collectives that a program calls, which must be the same on every
    rank: then it may not start in a thread of its own."""

    @abstractmethod
    def start(self) -> None:
        """Hand the data over; returns at once."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until this rank has sent and received everything."""

    @abstractmethod
    def messages(self) -> Sequence[int]:
        """The sizes in bytes of what this rank sent in the last exchange; before the first one, an estimate."""

    @property
    @abstractmethod
    def payload_bytes(self) -> int:
        """What this rank handed over in the last exchange; before the first one, an estimate."""

    def sent(self) -> Sent:
        """What this exchange asks of the link; asked once it has started."""
        return Sent("messages", tuple(self.messages()))

    def run(self) -> None:
        self.start()
        self.finish()

    def echo(self) -> None:
        """Receive, without any exchange, what the other ranks would send if each did what this one does: one rank's
        local work can then be measured where the others are not there.

        Raises:
            UsageError: this kind of exchange does not know.
        """
        raise UsageError(
            f"what the other ranks of {self.method or 'this method'} would send in {self.operation} is not known",
            hint=f"write an echo() for {type(self).__name__}, or measure it with netsim run",
        )


class Collective(Wire):
    """An exchange by one collective operation of torch.distributed, whose size never changes.

    Args:
        begin: starts it with ``async_op=True``; answers its Work.
        messages: the sizes of what its schedule makes this rank send, in order.
        sent: what it asks of the link, where more is known of it than its messages.
        echo: see :meth:`Wire.echo`.
    """

    def __init__(
        self,
        operation: str,
        begin: Callable[[], dist.Work | None],
        payload_bytes: int,
        messages: tuple[int, ...],
        sent: Sent | None = None,
        echo: Callable[[], None] | None = None,
    ) -> None:
        self.operation, self._begin, self._sent, self._echo = operation, begin, sent, echo
        self._payload_bytes, self._messages = payload_bytes, messages
        self._work: dist.Work | None = None

    def start(self) -> None:
        with named(self):
            self._work = self._begin()

    def finish(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            with named(self):
                work.wait()

    def echo(self) -> None:
        if self._echo is None:
            super().echo()
        else:
            self._echo()

    def messages(self) -> tuple[int, ...]:
        return self._messages

    def sent(self) -> Sent:
        return super().sent() if self._sent is None else self._sent

    @property
    def payload_bytes(self) -> int:
        return self._payload_bytes


Segment = Local | Wire


def segments_of(method: Method, name: str) -> list[Segment]:
    """The segments of ``method``, whose exchanges know it as ``name``."""
    segments = method.segments()
    for each in segments:
        if isinstance(each, Wire):
            each.method, each.group = name, method.group
    return segments


LARGEST = torch.finfo(torch.float32).max * (1 - 1e-6)
"""Below this a float32 sum may still round up without becoming inf."""

SMALL_ROUND_S = 0.3e-3
"""One exchange of small messages over Gloo without delay, between a few ranks that are not busy."""


FIRST_TAG, LAST_TAG = 2**30, 2**31 - 1
"""Tags of netsim's messages between two ranks, the upper half of what Gloo takes: a user's own messages, whose tags
begin at 0, cannot meet them."""
_OWNER_TAGS = 1 << 16
_drawn: weakref.WeakKeyDictionary[dist.ProcessGroup, Iterator[int]] = weakref.WeakKeyDictionary()


class Channel:
    """The tags of one backend or hook state: two of them in one program do not take each other's messages, even if
    their exchanges overlap. They are drawn when the first message is about to be sent, which all ranks do in the same
    order."""

    def __init__(self) -> None:
        self._first: int | None = None

    def tag(self, process_group: dist.ProcessGroup | None, number: int) -> int:
        """The tag of exchange ``number``."""
        if self._first is None:
            owner = process_group or dist.group.WORLD
            assert owner is not None
            drawn = next(_drawn.setdefault(owner, itertools.count()))
            self._first = FIRST_TAG + drawn * _OWNER_TAGS % (LAST_TAG + 1 - FIRST_TAG)
        return self._first + number % _OWNER_TAGS


@dataclass(frozen=True)
class Group:
    """This rank's place among the others; ``process_group`` None is torch's default group.

    Attributes:
        link_bps: what a method may take the link's rate to be, when it must choose.
        round_s: likewise the time of one round of small messages.
    """

    rank: int
    world_size: int
    process_group: dist.ProcessGroup | None = None
    link_bps: float = 1e9
    round_s: float = SMALL_ROUND_S
    tags: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)
    """Numbers for exchanges; every rank draws them in the same order."""
    channel: Channel = field(default_factory=Channel, compare=False, repr=False)
    """What sets its messages apart from those of other exchanges over the same process group."""

    def renewed(self) -> Group:
        """The same place, its exchanges numbered from the beginning: for what is built in another's stead, on some
        ranks perhaps after an attempt that failed."""
        return replace(self, tags=itertools.count())

    @property
    def backend(self) -> str:
        """``gloo`` or ``nccl``; Gloo of a rank alone, and of one whose others are only imagined."""
        if self.world_size == 1 or not (self.process_group or dist.is_initialized()):
            return "gloo"
        return dist.get_backend(self.process_group)

    def wire_device(self, device: torch.device) -> torch.device:
        """Where a tensor must lie to cross the wire: NCCL moves device memory, Gloo the host's."""
        if device.type == "cpu" or self.world_size == 1:
            return device
        return device if self.backend == "nccl" else torch.device("cpu")


class Method(ABC):
    """How gradients, in ``flat.data``, become their average over ranks, in ``average``.

    A subclass owns whatever it needs between steps (residuals, buffers). Every rank must build it with the same
    parameters and run its segments in the same order.
    """

    name: ClassVar[str]

    collective: ClassVar[str | None] = None
    """How sparse entries travel, where a method could have chosen otherwise."""

    citation: ClassVar[str] = ""
    """Whom to cite for a method of one's own, as BibTeX or text: a report's citations show it."""

    unbiased: ClassVar[bool] = False
    """Whether the expected average, over the method's own random numbers, is the mean of the gradients: for a method
    that drops something and keeps no residual. ``netsim check`` then tests the mean over many steps."""

    skipped: bool = False
    """Whether the ranks agreed to leave the last step out: the average is 0 and the optimizer should not use it."""

    @property
    def steps(self) -> int | None:
        """How many it has been through, the same on all ranks; None where it does not count them."""
        return None

    stateless: ClassVar[bool] = False
    """Whether nothing is kept between steps, so that it does not matter which units a step's gradient is in."""

    provisional: bool = False
    """Whether this exchange is one of several that make up a step. Whoever runs them then calls :meth:`commit` or
    :meth:`roll_back` once all are through; otherwise a method commits with its last segment."""

    limit: float = LARGEST
    """The largest magnitude that the average may have. A step that exceeds it is refused like one whose gradient is not
    finite: the average must still be finite when it is multiplied by the loss's scale."""

    def __init__(self, flat: FlatGradients, group: Group) -> None:
        self.flat, self.group = flat, group

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.flat!r}, rank {self.group.rank} of {self.group.world_size})"

    @property
    def average(self) -> torch.Tensor:
        """Where the average is once the segments have run, float32 [N]: in ``flat.data``, or in a buffer of the
        method's own that it need not clear as a whole."""
        return self.flat.data

    @property
    def borrows(self) -> bool:
        """Whether gradients may be lent (:meth:`FlatGradients.lend`): it reads them from ``flat.sources`` and, where
        ``flat.lent`` is not None, writes the average into those tensors once no rank can refuse the step."""
        return False

    def fitted_average(self, scale: float = 1.0) -> torch.Tensor:
        """The average as the parameters can take it, times ``scale``: what a float16 cannot hold is kept for later
        steps, where the method keeps anything at all."""
        for begin, rest in self.flat.fitted(self.average, scale):
            self.keep_back(begin, rest)
        return self.average

    def keep_back(self, begin: int, rest: torch.Tensor) -> None:  # noqa: B027 - keeping nothing is an answer
        """``rest`` (float32 [n]) of the average, from flat position ``begin`` on, was not applied. Every rank has the
        same of it, so that each may add it to its residual."""

    @abstractmethod
    def segments(self) -> list[Segment]:
        """The step, in order. Called once; the closures are run every step."""

    def commit(self) -> None:  # noqa: B027 - nothing to do where nothing is kept
        """Take over what the last step leaves for the next one: residual, velocity, owner's sums."""

    def roll_back(self) -> None:  # noqa: B027 - likewise
        """Be as if the last step, which was not committed, had never been; nothing where there is none."""

    @property
    def residual_bytes(self) -> int:
        """Memory that error feedback holds between steps."""
        return 0

    def statistics(self, *, layers: bool = False) -> Statistics | None:
        """What the last step sent and kept back, with ``layers`` of every parameter too; None for a method that selects
        nothing. Ask when the step is over: it costs a pass over the residual then, and nothing otherwise."""
        del layers
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of this rank must keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{self.name} keeps no state, the checkpoint holds {', '.join(sorted(state))}")
