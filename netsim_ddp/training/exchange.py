"""How the ranks' gradients become one update: a method and an optimizer, or Adam that compresses its momentum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from netsim_ddp.communication.adam import CompressedAdam
from netsim_ddp.communication.averaging import statistics_of
from netsim_ddp.communication.building import build_method, description
from netsim_ddp.communication.comparison import same_on_all_ranks
from netsim_ddp.communication.executor import pipeline, stages
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Method, Segment, Wire
from netsim_ddp.compression.kernels import all_finite
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.steps.execution import Execution
from netsim_ddp.steps.optimizers import build_optimizer


class Exchange(ABC):
    """What happens to a step's gradient once a rank has it."""

    optimizer: torch.optim.Optimizer

    exchanges: bool
    """Whether there are other ranks to exchange with."""
    takes_scaled: bool = False
    """Whether gradients come with the scale of the loss: where nothing is kept between steps. float16 needs it."""

    @abstractmethod
    def play(self, execution: Execution, scale: float | None = None) -> bool:
        """Average the gradients in ``flat.data`` and update the parameters, the same bits on every rank; False where
        the ranks skipped the step.

        Args:
            scale: that the gradients carry, where a scaler is at work: an average that is not finite is then no error,
                and the step is left out.

        Raises:
            NonFiniteGradient: on every rank: a gradient or a sum is not finite, and nothing has changed.
        """

    @property
    @abstractmethod
    def wires(self) -> Sequence[Segment]:
        """What the last step sent."""

    @property
    @abstractmethod
    def method(self) -> Method | None:
        """The compression method; None until its first exchange."""

    @property
    def collective(self) -> str | None:
        """What the method's messages went by, where it has a choice and has exchanged anything."""
        return self.method.collective if self.method is not None and self.exchanges else None

    @property
    def residual_bytes(self) -> int:
        """Memory that error feedback holds between steps."""
        return 0 if self.method is None else self.method.residual_bytes

    @abstractmethod
    def statistics(self) -> Statistics | None:
        """What the last step sent and kept back."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What belongs to this rank alone: residuals, owner's sums."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        Raises:
            ValueError: it does not fit.
        """

    def shared_state(self) -> dict[str, Any]:
        """What all ranks have the same of: the optimizer's."""
        return self.optimizer.state_dict()

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`shared_state` saved; rates and decays stay those of this run."""
        here = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        self._load_optimizer(state)
        for group, ours in zip(self.optimizer.param_groups, here, strict=True):
            group.update(ours)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


class Averaged(Exchange):
    """The optimizer takes the averaged gradient, compressed or not, as a single machine's takes its own.

    One rank has nobody to exchange with, and leaves its gradient as it is.
    """

    def __init__(self, method: Method, group: Group, optimizer: torch.optim.Optimizer) -> None:
        self._method, self.optimizer = method, optimizer
        self._stages = [stages(method.segments()) if group.world_size > 1 else []]
        self._wires: list[Wire] = [wire for stage in self._stages[0] for wire in stage.wires]
        self.exchanges = bool(self._wires)
        self.takes_scaled = method.stateless and self.exchanges
        self._taken = True

    def play(self, execution: Execution, scale: float | None = None) -> bool:
        for _ in pipeline(execution, self._stages):
            pass  # there is one bucket, and it is there
        execution.local("optimizer", lambda: self._update(scale))
        return self._taken

    def _update(self, scale: float | None) -> None:
        flat = self.method.flat
        self._taken = not self.method.skipped
        if self._taken and scale is not None:
            average = self.method.average if self._wires else flat.data
            if scale != 1:
                average.div_(scale)
            self._taken = all_finite(average)
        if not self._taken:
            return
        average = self.method.fitted_average() if self._wires else flat.data
        flat.attach(average)
        flat.scatter(average)  # to parameters that are not float32
        self.optimizer.step()

    @property
    def wires(self) -> Sequence[Segment]:
        return self._wires

    @property
    def method(self) -> Method:
        return self._method

    def statistics(self) -> Statistics | None:
        return statistics_of([self.method], self._wires, layers=False) if self._wires else None

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state)


class FrozenMoment(Exchange):
    """:class:`CompressedAdam`: dense steps until the second moment is frozen, then its momentum is compressed."""

    optimizer: CompressedAdam

    def __init__(self, optimizer: CompressedAdam, group: Group) -> None:
        self.optimizer = optimizer
        self.exchanges = group.world_size > 1
        for backend in (optimizer.dense, optimizer.sparse):
            backend.group = group

    def play(self, execution: Execution, scale: float | None = None) -> bool:
        del scale  # the gradients come without it
        for backend in (self.optimizer.dense, self.optimizer.sparse):
            backend.executor = execution
        taken = self.optimizer.step()
        execution.local("optimizer", lambda: None)  # all since the exchange
        return taken

    @property
    def wires(self) -> Sequence[Segment]:
        # The sparse exchange is built when the first one comes.
        return self.optimizer.sparse.segments or self.optimizer.dense.segments

    @property
    def method(self) -> Method | None:
        return self.optimizer.sparse.method

    def statistics(self) -> Statistics | None:
        return self.optimizer.sparse.statistics()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.optimizer.sparse.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.sparse.load_state_dict(state)

    def shared_state(self) -> dict[str, Any]:
        return {key: value for key, value in self.optimizer.state_dict().items() if key != "exchange"}

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict({**state, "exchange": self.optimizer.sparse.state_dict()})


def build_exchange(
    scenario: TrainScenario,
    method: str,
    params: Mapping[str, Any],
    freeze_after: int | None,
    flat: FlatGradients,
    group: Group,
) -> Exchange:
    """The exchange that ``scenario`` asks for.

    * SGD takes the average. Where the method corrects momentum it is :class:`CorrectedSGD`; alone, with nobody to
      exchange with, it has the method's momentum itself.
    * Adam and AdamW take the average too: simple, and good where few entries stay back for long.
    * With ``freeze_after`` they are :class:`CompressedAdam`.

    Raises:
        RanksDisagree: the ranks have different models, options or versions.
    """
    named = list(zip(flat.names, flat.parameters, strict=True))
    exchange: Exchange
    with same_on_all_ranks(group) as facts:
        if freeze_after is None:
            exchange = Averaged(
                build_method(method, flat, group, as_ddp=True, **params),
                group,
                build_optimizer(scenario, flat.parameters, params, alone=group.world_size == 1),
            )
        else:
            adam = CompressedAdam(
                named,
                lr=scenario.learning_rate,
                weight_decay=scenario.weight_decay,
                decoupled=scenario.optimizer == "adamw",
                freeze_after=freeze_after,
                method=method,
                params=dict(params),
                process_group=group.process_group,
            )
            exchange = FrozenMoment(adam, group)
        facts.update(
            description(method, params, named, optimizer=scenario.optimizer, freeze_after=freeze_after)
        )
    return exchange
