"""The entry of ``powersgd``."""

from __future__ import annotations

from netsim_ddp.methods.citations import NEURIPS, paper
from netsim_ddp.methods.entry import FEEDBACK, OVERLAP, MethodEntry, Params, ring
from netsim_ddp.options import above_zero, whole

MAX_RANK = 1024  # of an approximation; far above where it pays
USUAL_SHARE = 0.005
"""Of the parameters, what rank 1 sends of a usual model."""


class PowerSGDEntry(MethodEntry):
    """Its bytes follow from the matrices' shapes, which are taken to be usual ones."""

    def wire_bytes(self, parameters: float, ranks: int, params: Params) -> float:
        return ring(ranks) * 4 * parameters * USUAL_SHARE * float(params.get("rank", 1))


_VOGELS = paper(
    "vogels2019powersgd", "Vogels, Thijs and Karimireddy, Sai Praneeth and Jaggi, Martin",
    "{PowerSGD}: Practical Low-Rank Gradient Compression for Distributed Optimization", NEURIPS, 2019,
)  # fmt: skip

POWERSGD = PowerSGDEntry(
    "powersgd",
    "every matrix as the product of two thin ones (Vogels et al. 2019)",
    impl="netsim_ddp.communication.methods.powersgd:PowerSGD",
    options={
        "rank": whole(1, "of the approximation", least=1, most=MAX_RANK, example=2),
        "min_compression": above_zero(2.0, "matrices that this saves less than a factor of go as they are"),
        "feedback": FEEDBACK,
        "overlap": OVERLAP,
        "seed": whole(0, "of the first step's basis", most=2**31 - 1, example=1),
    },
    phases=("compress", "communicate", "decompress"),
    formula="2(P-1)/P x 4r(n+m) for every n x m matrix, 4 for every other entry",
    scheme="ring",
    payload="fixed",
    citations=(_VOGELS,),
    state_key="q",
    same_torch=True,
    advised=({"rank": 2}, {"rank": 4}),
)
