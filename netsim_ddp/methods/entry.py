"""What is known of a method without running it: one entry per built-in method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from netsim_ddp.methods.citations import Citation
from netsim_ddp.options import Options, switch

Growth = Literal["ring", "gather"]
Params = Mapping[str, Any]

OVERLAP = switch(False, "exchange buckets while backward goes on; netsim run and HookState only")
FEEDBACK = switch(True, "keep what was not sent, and add it to the next gradient (error feedback)")


def ring(ranks: float) -> float:
    """The share of a buffer that each of ``ranks`` sends in a ring all-reduce: 2(P-1)/P."""
    return 2 * (ranks - 1) / ranks


@dataclass(frozen=True)
class MethodEntry:
    """A method as the registry has it. The defaults are those of a user's own method, of which nothing is known.

    Attributes:
        name: as ``--method`` takes it.
        about: one line, to follow ``name:``.
        impl: ``module:attribute`` of what builds it: called as ``attribute(flat, group, **options)``.
        impl_as_ddp: likewise where ``netsim run`` and ``netsim train`` measure it, if they measure another one.
        options: each with its type and help.
        phases: of a step, beside compute and optimizer, in order.
        formula: bytes on the wire per rank and step in words, with P ranks and N parameters.
        scheme: how a rank's bytes grow with the number of ranks: as in a ring all-reduce or an all-gather.
        payload: ``fixed`` by the parameters' shapes, or by them where positions are not packed, or varying.
        value_bytes: of each entry of the gradient, where all are sent.
        vectors: what it keeps beside the gradient while it runs, in buffers as long as the gradient.
        fixed_rounds: how many messages follow each other in a step, where the number of ranks does not matter.
        citations: whom to cite for the method itself; :mod:`netsim_ddp.methods.citations` adds those of its options.
        is_baseline: every other method is held against it.
        is_default: it runs, beside the baseline, where nobody names a method.
        rival_on: the backend, ``gloo`` or ``nccl``, on which the method, overlapped, is what a reader would run
            otherwise: dense in 16 bits.
        ddp_backends: the backends on which DistributedDataParallel, alone or with a hook of torch's, does the same.
        ddp_type: what such a hook rounds gradients to, as torch names the type; None for the gradients' own.
        state_key: a key of the method's state that no other family of methods has. Methods with the same key go on from
            each other's state.
        same_torch: whether all ranks get the same bits only where they run the same version of torch.
        advised: the settings that ``netsim advise`` considers where nobody names a method, without ``overlap``.
    """

    name: str
    about: str = ""
    impl: str = ""
    impl_as_ddp: str = ""
    options: Options = field(default_factory=lambda: {"overlap": OVERLAP})
    phases: tuple[str, ...] = ()
    formula: str = ""
    scheme: Growth | None = None
    payload: Literal["fixed", "fixed unpacked", "varying"] = "varying"
    value_bytes: int = 4
    vectors: float = 3.0
    fixed_rounds: int | None = None
    citations: tuple[Citation, ...] = ()
    is_baseline: bool = False
    is_default: bool = False
    rival_on: str = ""
    ddp_backends: tuple[str, ...] = ()
    ddp_type: str | None = None
    state_key: str = ""
    same_torch: bool = False
    advised: tuple[Params, ...] = ()

    @property
    def uses_codec(self) -> bool:
        """Whether its messages are those of :class:`netsim_ddp.compression.codec.Codec`."""
        return "indices" in self.options

    def check(self, params: Params) -> None:
        """Refuse options that exclude each other.

        Raises:
            UsageError: with the two that do.
        """

    def growth(self, params: Params) -> Growth | None:
        """By which formula a rank's bytes grow with the number of ranks; None where it is not known."""
        return "gather" if params.get("collective") == "allgather" else self.scheme

    def fixed_payload(self, params: Params) -> bool:
        """Whether the payload follows from the parameters' shapes alone, not from what a step selects."""
        unpacked = params.get("indices") in ("int32", "int64")
        return self.payload == "fixed" or (self.payload == "fixed unpacked" and unpacked)

    def wire_bytes(self, parameters: float, ranks: int, params: Params) -> float:  # noqa: ARG002 - for other schemes
        """About what a rank sends per step: bytes without headers, of ``parameters`` float32 values."""
        return ring(ranks) * self.value_bytes * parameters

    def rounds(self, ranks: int) -> int:
        """How many messages follow each other in a step."""
        return self.fixed_rounds or 2 * (ranks - 1)
