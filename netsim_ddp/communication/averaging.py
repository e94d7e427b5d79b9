"""What a backend and the state of a DDP hook share: a method over some parameters, built again when these change, with
what is pending going on; its checkpoints; and who scales the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from netsim_ddp.communication.applied import ClearedBetweenSteps
from netsim_ddp.communication.building import description, resolved
from netsim_ddp.communication.comparison import STATE, Facts
from netsim_ddp.communication.cost import payload_bytes
from netsim_ddp.communication.ddp_checks import note_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.loss_scale import LossScale, Scaler
from netsim_ddp.communication.membership import Membership
from netsim_ddp.communication.parameters import Named
from netsim_ddp.communication.saved_state import (
    ByName,
    Saved,
    check_names,
    check_options,
    continue_from,
    unless_refused,
    warn_of_absent,
)
from netsim_ddp.communication.segments import Group, Method, Segment
from netsim_ddp.compression.statistics import Statistics


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """An exchange computes the same whatever mode the program around it has set for its model. Inside there is no
    autocast, which would multiply PowerSGD's matrices in 16 bits; no graph; and no inference mode, whose tensors nobody
    may change outside of it. (Default type and device are given wherever a tensor is made.)"""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class GradientAveraging(ABC):
    """Averages gradients by one method, which is built when the parameters are known and again when they change.

    A subclass has ``params``, the method's typed options.
    """

    params: Mapping[str, Any]
    between_steps: str
    """What a loop must do that adds gradients to the averages of the step before."""
    _flat: FlatGradients
    _membership: Membership
    _saved: dict[str, Any] | None
    """What was loaded, or pending, before anything was built."""
    _loaded: bool

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in sorted(self.params.items()))
        return f"{type(self).__name__}({self._name!r}{options})"

    def _start_anew(self) -> None:
        """Nothing is built, and nothing is pending."""
        self._methods: list[Method] = []
        self._built_for: Group | None = None
        self._compared = False
        self._cleared: ClearedBetweenSteps | None = None
        self._parked: dict[str, ByName] = {}
        """What is pending for parameters that are not trained now."""

    @property
    @abstractmethod
    def _name(self) -> str:
        """The method's, on the command line."""

    @property
    @abstractmethod
    def _known(self) -> set[str] | None:
        """The names of all parameters, trained or not; None before they are known."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What this rank's checkpoint must keep: residuals and whatever else the method goes on from."""

    @property
    def group(self) -> Group:
        """This rank's place, as it is now: a backend or state may be made before ``init_process_group``.

        Raises:
            RuntimeError: there is no process group, and the environment or the caller says that there are more ranks.
            ValueError: it is not of the rank and size that the caller said.
        """
        return self._membership.group()

    @group.setter
    def group(self, group: Group) -> None:
        self._membership = Membership.fixed(group)

    @property
    def scaler(self) -> Scaler:
        """Who scales the loss."""
        return self._loss_scale.scaler

    @scaler.setter
    def scaler(self, scaler: Scaler) -> None:
        self._loss_scale = LossScale(scaler)

    @property
    def _options(self) -> dict[str, Any]:
        return resolved(self._name, self.params)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved, of a :class:`DistributedBackend` or a :class:`HookState`; before
        the first step what depends on the parameters is checked when that comes. What goes on and what is refused is
        the rule of :mod:`netsim_ddp.communication.saved_state`: other buckets, another order, ratio or collective go
        on. All ranks load, and the next exchange compares at which step they are.

        Raises:
            ValueError: it is another rank's or method's, or of another number of ranks, or something that is pending
                would be lost; nothing has changed then.
        """
        saved = self._checked(state, self._built_for if self._methods else None, self._known)
        if self._methods:
            self._parked = continue_from(saved, self._methods)
        else:
            self._saved = dict(state)
        self._loaded, self._compared = bool(saved.parts), False

    def _described(self, methods: Sequence[Method], named: Named, **more: Any) -> Facts:
        """What must be the same on all ranks, of ``methods`` over the parameters ``named``, and ``more``."""
        more[STATE] = {
            "loaded": self._loaded,
            "steps": [method.steps for method in methods if method.steps is not None],
        }
        return description(self._name, self.params, named, methods, **more)

    def _kept(self) -> dict[str, Any] | None:
        """What goes on in the next layout."""
        return self.state_dict() if self._methods else self._saved

    def _checked(self, state: Mapping[str, Any], group: Group | None, known: set[str] | None) -> Saved:
        """``state``, if it may go on here; ``known`` parameters are all that it may be of."""
        saved = Saved.of(state)
        check_options(saved, self._name, self._options, group)
        if known is not None:
            check_names(saved, known)
        return saved

    def _continued(
        self, build: Callable[[Group], list[Method]], group: Group, known: set[str]
    ) -> tuple[list[Method], dict[str, ByName]]:
        """The methods that ``build`` makes for ``group``, which go on from what is kept; and what is pending for other
        parameters than theirs. Nothing has changed where that fails."""
        with unless_refused(self.params.get("error_buffer")):
            methods = build(group.renewed())
            if (kept := self._kept()) is None:
                return methods, {}
            saved = self._checked(kept, group, None if self._methods else known)
            return methods, continue_from(saved, methods)

    def _adopt(
        self,
        flat: FlatGradients,
        group: Group,
        methods: list[Method],
        parked: dict[str, ByName],
        known: set[str],
    ) -> None:
        """Work with these methods from now on."""
        warn_of_absent(parked, self._parked, known)
        self._flat, self._built_for, self._methods, self._parked = flat, group, methods, parked
        note_exchange(self, flat.parameters, self._name, self.params)
        self._cleared = (
            ClearedBetweenSteps(flat.parameters, self.between_steps) if self.params.get("momentum") else None
        )


def statistics_of(
    methods: Sequence[Method], segments: Sequence[Segment], *, layers: bool
) -> Statistics | None:
    """What this rank sent and kept back in the last step, over all ``methods``; None where none selects anything."""
    found = [each for method in methods if (each := method.statistics(layers=layers)) is not None]
    return replace(sum(found[1:], found[0]), payload_bytes=payload_bytes(segments)) if found else None
