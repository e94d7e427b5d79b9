"""Whether the workers of a run fit in this machine's memory, asked before they start. Imports no torch.

Else Linux would end one of them, or a program of somebody else's, in the middle of a measurement.
"""

from __future__ import annotations

from netsim_ddp.errors import UsageError
from netsim_ddp.methods import entry_of
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.scenario import Scenario
from netsim_ddp.units import format_bytes

GRADIENT_SETS = 3
"""So many gradients of each worker are recorded where a clock stands in for an accelerator."""
PROCESS_BYTES = 90 * 10**6
"""What a worker holds beside vectors of the gradient's length (reports/growth.md)."""
KEPT = 1.2
"""What the C library holds for such vectors, with what was freed, of what they take."""
MESSAGES = 3
"""What the entries of a sparse method take, sent, received and decoded, of the bytes that it sends."""
LARGEST_BUILT_IN = 26_000_000
"""No model of netsim's own has more parameters: where such a one fits, nobody needs to count them."""


def worker_bytes(parameters: int, scenario: Scenario) -> float:
    """About what each worker holds at most, bytes.

    Args:
        parameters: of the model, all float32.
        scenario: resolved.
    """
    vectors = 2.0  # the parameters and their gradient
    if scenario.compute_s is not None:
        vectors += GRADIENT_SETS
    elif scenario.recording is None:
        vectors += float(scenario.momentum > 0) if scenario.optimizer == "sgd" else 2.0
    kept = max(_method_bytes(method, parameters, scenario.workers) for method in scenario.methods)
    return PROCESS_BYTES + KEPT * (4 * vectors * parameters + kept)


def _method_bytes(method: MethodSpec, parameters: int, workers: int) -> float:
    entry = entry_of(method.name)
    messages = MESSAGES * entry.wire_bytes(parameters, workers, method.params) if entry.uses_codec else 0.0
    return 4 * entry.vectors * parameters + messages


def check_memory(parameters: int, scenario: Scenario, free: int, *, shared: int = 0) -> None:
    """Refuse workers that do not fit.

    Args:
        free: bytes that can still be allocated.
        shared: bytes that all workers hold together.

    Raises:
        UsageError: with what they need, and how many of them fit.
    """
    each = worker_bytes(parameters, scenario)
    needed = shared + each * scenario.workers
    if needed <= free:
        return
    fit = int((free - shared) / each)
    raise UsageError(
        f"{scenario.workers} workers with {parameters:,} parameters need about {format_bytes(needed)} of memory, "
        f"{format_bytes(each)} each, and {format_bytes(free)} are free",
        hint=(f"write --workers {fit}, or " if fit > 1 else "") + "take a machine with more memory",
    )
