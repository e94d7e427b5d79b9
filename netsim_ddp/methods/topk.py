"""The entries of the Top-K methods, the options that they share, and which of these exclude each other."""

from __future__ import annotations

from netsim_ddp.errors import UsageError
from netsim_ddp.methods.citations import NEURIPS, paper
from netsim_ddp.methods.entry import FEEDBACK, OVERLAP, MethodEntry, Params, ring
from netsim_ddp.options import Options, above_zero, fraction, number, one_of, switch, whole

PACKED_BYTES = {"fp32": 5.05, "fp16": 3.05, "bf16": 3.05, "int8": 2.05, "int8-stochastic": 2.05}
"""About what an entry takes on the wire with its position, by the format of its value."""

_SELECTED: Options = {
    "ratio": fraction(0.01, "kept fraction k/N of each parameter's entries"),
    "feedback": FEEDBACK,
    "overlap": OVERLAP,
    "selector": one_of(
        "exact", "sampled", "fitted", "random", "block", meaning="how the k entries are chosen"
    ),
    "scope": one_of("parameter", "bucket", "model", meaning="over what the k largest are taken"),
    "dense_below": whole(0, "parameters with fewer entries are sent whole"),
    "dense_norms": switch(False, "parameters of at most one dimension are sent whole"),
    "warmup_steps": whole(0, "steps during which more is sent, ratio ** (s/5) in stage s = 1 to 4"),
    "adaptive": switch(False, "share k out among parameters by what they sent"),
    "nonfinite": one_of(
        "raise", "skip", meaning="what a NaN or inf in one rank's gradient, or in a sum, does"
    ),
}
_CORRECTED_AND_CODED: Options = {
    "momentum": number(
        0.0, "accumulated before the selection; the optimizer has none then", least=0, below=1, example="0.9"
    ),
    "clip": above_zero(None, "the norm that the gradient of all ranks may have; none: no limit", example="1"),
    "masking": one_of("auto", "on", "off", meaning="whether entries that are sent lose their momentum"),
    "values": one_of(*PACKED_BYTES, meaning="how values are rounded on the wire"),
    "indices": one_of("packed", "int32", "int64", meaning="how positions are written on the wire"),
}

_COLLECTIVES = {
    "split": ("split-reduce", "fewer bytes"),
    "allgather": ("all-gather", "fewer rounds for no more bytes"),
}


def collective_words(collective: str) -> tuple[str, str]:
    """What the collective that ``auto`` chose is called, and why it was chosen: ``("split-reduce", "fewer bytes")``."""
    return _COLLECTIVES.get(collective, ("split-reduce and all-gather", "by each bucket's size"))


class TopKEntry(MethodEntry):
    """A Top-K method."""

    def check(self, params: Params) -> None:
        check_together(params)


class SparseEntry(TopKEntry):
    """A Top-K method whose entries travel as such."""

    def wire_bytes(self, parameters: float, ranks: int, params: Params) -> float:
        packed = PACKED_BYTES.get(str(params.get("values", "fp32")), PACKED_BYTES["fp32"])
        messages = ranks - 1 if self.scheme == "gather" else min(ring(ranks), ranks - 1)
        return messages * float(params.get("ratio", 0.01)) * parameters * packed


_STICH = paper(
    "stich2018sparsified", "Stich, Sebastian U. and Cordonnier, Jean-Baptiste and Jaggi, Martin",
    "Sparsified {SGD} with Memory", NEURIPS, 2018,
)  # fmt: skip
_PHASES = ("compress", "communicate", "decompress")

TOPK = SparseEntry(
    "topk",
    "the k largest entries of each parameter with error feedback (Stich et al. 2018), by split-reduce or all-gather",
    impl="netsim_ddp.communication.methods.topk:topk",
    options={
        **_SELECTED,
        **_CORRECTED_AND_CODED,
        "keep": switch(True, "split: owners keep all but a parameter's k_i largest sums for later steps"),
        "collective": one_of("auto", "split", "allgather", meaning="how the entries travel; auto: by cost"),
    },
    phases=_PHASES,
    formula="k entries of b bytes: 2(P-1)/P x kb by split-reduce, (P-1) x kb by all-gather",
    scheme="ring",
    fixed_rounds=2,
    citations=(_STICH,),
    is_default=True,
    state_key="selection",
    advised=({"ratio": 0.01}, {"ratio": 0.01, "values": "fp16"}, {"ratio": 0.1, "values": "fp16"}),
)
TOPK_ALLGATHER = SparseEntry(
    "topk-allgather",
    "the same, every rank's entries sent to all others",
    impl="netsim_ddp.communication.methods.topk_allgather:TopKAllGather",
    options={**_SELECTED, **_CORRECTED_AND_CODED},
    phases=_PHASES,
    formula="(P-1) x kb, k entries of b bytes",
    scheme="gather",
    fixed_rounds=2,
    payload="fixed unpacked",
    citations=(_STICH,),
    state_key="selection",
)
TOPK_DENSE = TopKEntry(
    "topk-dense",
    "the same, written into a dense tensor and all-reduced: it saves nothing on the wire",
    impl="netsim_ddp.communication.methods.topk_dense:TopKDense",
    options=_SELECTED,
    phases=_PHASES,
    formula="2(P-1)/P x 4N",
    scheme="ring",
    payload="fixed",
    citations=(_STICH,),
    state_key="selection",
)


def check_together(params: Params) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: with the two that do.
    """
    scope, feedback = params.get("scope", "parameter"), params.get("feedback", True)
    excluded = [
        *(
            (
                scope != "parameter" and params.get(option),
                f"{option} is about single parameters, scope={scope} selects among all of them at once",
                f"leave {option} or scope out",
            )
            for option in ("dense_below", "dense_norms", "adaptive")
        ),
        *(
            (
                params.get(option) and not feedback,
                f"{option} is accumulated in the residual, which feedback=off switches off",
                f"leave {option} or feedback out",
            )
            for option in ("momentum", "clip")
        ),
        (
            params.get("masking") == "on" and not params.get("momentum"),
            "masking=on is about the velocity of entries that are sent, and there is none without momentum",
            "write momentum=0.9 too, or leave masking out",
        ),
        (
            "keep" in params and params.get("collective") == "allgather",
            "keep is about the sums that split-reduce's owners hold, which collective=allgather has none of",
            "leave keep out, or write collective=split",
        ),
        (
            scope == "model" and params.get("overlap"),
            "scope=model selects when the last gradient is there, so it cannot overlap the backward pass",
            "write scope=bucket, or overlap=off",
        ),
    ]
    for both_given, problem, hint in excluded:
        if both_given:
            raise UsageError(problem, hint=hint)
