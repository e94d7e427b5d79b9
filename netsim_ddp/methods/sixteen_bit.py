"""The entries of ``fp16`` and ``bf16``: dense in 16 bits."""

from __future__ import annotations

from netsim_ddp.methods.citations import ICLR, paper
from netsim_ddp.methods.dense import RING
from netsim_ddp.methods.entry import MethodEntry

_MIXED = paper(
    "micikevicius2018mixed",
    "Micikevicius, Paulius and Narang, Sharan and Alben, Jonah and Diamos, Gregory and Elsen, Erich and "
    "Garcia, David and Ginsburg, Boris and Houston, Michael and Kuchaiev, Oleksii and Venkatesh, Ganesh and Wu, Hao",
    "Mixed Precision Training", ICLR, 2018,
)  # fmt: skip

FP16 = MethodEntry(
    "fp16",
    "dense, rounded to float16 on the wire, as torch's fp16_compress_hook does it",
    impl="netsim_ddp.communication.methods.fp16:Float16AllReduce",
    phases=("compress", "communicate", "decompress"),
    formula="2(P-1)/P x 2N",
    scheme="ring",
    payload="fixed",
    citations=(RING, _MIXED),
    value_bytes=2,
    vectors=0.5,
    rival_on="gloo",
    ddp_backends=("gloo", "nccl"),
    ddp_type="float16",
    advised=({},),
)
BF16 = MethodEntry(
    "bf16",
    "dense, rounded to bfloat16 on the wire",
    impl="netsim_ddp.communication.methods.bf16:BFloat16Exchange",
    phases=("compress", "communicate", "decompress"),
    formula="2(P-1)/P x 2N",
    scheme="ring",
    payload="fixed",
    citations=(RING, _MIXED),
    value_bytes=2,
    vectors=1.0,
    rival_on="nccl",
    ddp_backends=("nccl",),  # Gloo has no sum of bfloat16: there netsim's own exchange does it
    ddp_type="bfloat16",
)
