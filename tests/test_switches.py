"""``NETSIM_KERNELS=torch``: no compiled kernel anywhere, the same bits, and a wrong word is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.compiled import needs_compiled

WORK = """
import sys, hashlib, torch
from netsim_ddp.communication import backend
from netsim_ddp.compression import Codec, kernels
from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.selection import Selection
from netsim_ddp.compression.shards import Shards
kernels.warm()
torch.set_num_threads(1)
digest = hashlib.sha256()
for selector in ("exact", "fitted"):
    options, shapes = SelectionOptions(selector=selector), [torch.Size([40_000]), torch.Size([7])]
    chosen = Selection(shapes, options, torch.device("cpu"))
    residual = torch.zeros(40_007)
    values, indices = chosen.run(torch.randn(40_007, generator=torch.Generator().manual_seed(1)), residual)
    for format in ("fp32", "int8"):
        digest.update(Codec(format).encode(values, indices).numpy().tobytes())
    digest.update(residual.numpy().tobytes())
print(digest.hexdigest(), "numba" in sys.modules)
"""


def run(*arguments: str, kernels: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NETSIM_KERNELS": kernels}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@needs_compiled
def test_the_switch_leaves_numba_alone_and_changes_no_bit() -> None:
    compiled, torch = (run("-c", WORK, kernels=word) for word in ("compiled", "torch"))
    assert compiled.stdout.split()[1] == "True", compiled.stderr
    assert torch.stdout.split()[1] == "False", torch.stderr
    assert compiled.stdout.split()[0] == torch.stdout.split()[0]


@pytest.mark.parametrize("command", [["run", "--steps", "1"], ["bench", "compress"]])
def test_an_unknown_word_is_refused_in_a_line(command: list[str]) -> None:
    done = run("-m", "netsim_ddp", *command, kernels="off")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == (
        "netsim: NETSIM_KERNELS=off is not one of compiled, torch (write NETSIM_KERNELS=torch, or unset it)"
    )
