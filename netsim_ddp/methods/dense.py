"""The entry of ``dense``, the baseline."""

from __future__ import annotations

from netsim_ddp.methods.citations import paper
from netsim_ddp.methods.entry import MethodEntry

RING = paper(
    "patarasuk2009bandwidth", "Patarasuk, Pitch and Yuan, Xin",
    "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations",
    "Journal of Parallel and Distributed Computing", 2009, journal=True,
)  # fmt: skip

DENSE = MethodEntry(
    "dense",
    "all-reduce of the whole gradient in the parameters' own type: the baseline",
    impl="netsim_ddp.communication.methods.dense:DenseAllReduce",
    impl_as_ddp="netsim_ddp.communication.methods.dense:baseline",
    phases=("communicate", "decompress"),
    formula="2(P-1)/P x 4N",
    scheme="ring",
    payload="fixed",
    vectors=0.0,
    citations=(RING,),
    is_baseline=True,
    ddp_backends=("gloo", "nccl"),
    advised=({},),
)
