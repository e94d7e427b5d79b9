"""What ``netsim doctor`` asks of a machine: one function per check, each run in a process of its own.

A check that hangs, crashes its interpreter or prints must not take the others with it: :func:`run_check` starts
``python -m netsim_ddp.tools.doctor NAME``, gives it a deadline and reads its one-line answer. Killing that process
is enough, because links and workers end with the process that made them.

PASS: works. WARN: netsim runs without it, or measures worse. FAIL: ``netsim run`` would not work.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from netsim_ddp.errors import LinkOffTarget, LinkUnavailable, NetsimError
from netsim_ddp.link.base import Exit, die_with_parent, module_command
from netsim_ddp.link.probe.probe import check as check_rate
from netsim_ddp.link.probe.probe import probe
from netsim_ddp.link.semaphores import FOLDER, REMEDY
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.channel import namespace_remedy
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.link.tc.tun import REMEDY as REMEDY_TUN
from netsim_ddp.methods import DEFAULT
from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.ranks.memory import available_bytes
from netsim_ddp.switches import KERNELS, compiled_kernels
from netsim_ddp.units import counted, format_bytes, format_duration, format_rate

if TYPE_CHECKING:
    from netsim_ddp.results.record import Cell

Status = Literal["PASS", "WARN", "FAIL"]

OLDEST_PYTHON = (3, 11)
LITTLE_MEMORY = 10**9
TC_RATE_BPS = 10**9
BUCKET = "--link bucket works without it"


@dataclass(frozen=True)
class Check:
    """One finished check. ``remedy`` says what to do; it is empty when the status is PASS."""

    name: str
    status: Status
    seconds: float
    found: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """What a check function returns."""

    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class _Plan:
    """A check function, its deadline, and what to do when it raises."""

    function: Callable[[], Finding]
    deadline_s: float
    remedy: str


def python() -> Finding:
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = sys.version_info[:2] < OLDEST_PYTHON
    return Finding("FAIL", version, CHECKS["python"].remedy) if old else Finding("PASS", version)


def cores() -> Finding:
    """Cores, free memory and load: what else on this machine the timings would show."""
    from netsim_ddp.scenario import available_cores

    count, load, memory = available_cores(), os.getloadavg()[0], available_bytes()
    found = f"{counted(count, 'core')}, load {load:.2f}"
    if memory is not None:
        found += f", {format_bytes(memory)} of memory free"
    advice = {
        "use a machine with more cores: ranks that share one wait for each other": count == 1,
        "wait until the other programs here are done: they slow the ranks": load > max(1.0, 0.5 * count),
        "free memory, or run fewer --workers": memory is not None and memory < LITTLE_MEMORY,
    }
    remedy = "; ".join(text for text, needed in advice.items() if needed)
    return Finding("WARN" if remedy else "PASS", found, remedy)


def _version(module: str) -> Finding:
    return Finding("PASS", str(importlib.import_module(module).__version__))


def numba() -> Finding:
    """Only ImportError is harmless: on anything else the import of netsim's own kernels fails too."""
    try:
        return _version("numba")
    except ImportError as error:
        return Finding("WARN", _last_line(error), CHECKS["numba"].remedy)


def kernel() -> Finding:
    """Compile or load the selection kernel, then hold its choice against torch.topk, ties included."""
    from netsim_ddp.compression import kernels

    begin = time.perf_counter()
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        kernels.warm()
    ready = format_duration(time.perf_counter() - begin)
    if (difference := _difference_to_topk()) is not None:
        return Finding("FAIL", difference, CHECKS["kernel"].remedy)
    if not compiled_kernels():
        return Finding(
            "WARN",
            f"{KERNELS}=torch: the torch twin selects, as torch.topk does",
            f"unset {KERNELS} for the compiled kernels, several times faster",
        )
    if kernels.fused is None:
        return Finding("WARN", "no numba: the torch twin selects, as torch.topk does", "pip install numba")
    if complaints:
        return Finding("WARN", str(complaints[0].message), CHECKS["kernel"].remedy)
    return Finding("PASS", f"fused, ready in {ready}; same as torch.topk")


def _difference_to_topk() -> str | None:
    """Where error feedback's selection first departs from torch.topk; None where it never does."""
    import torch

    from netsim_ddp.compression import kernels

    source = torch.Generator().manual_seed(0)
    parts = {
        "random": torch.randn(50_000, generator=source),
        "tied": torch.randint(-3, 4, (50_000,), generator=source).float(),
        "zero": torch.zeros(300),
    }
    flat, sizes = torch.cat(list(parts.values())), [part.numel() for part in parts.values()]
    ks = [size // 100 for size in sizes]
    bounds, firsts = [0, *accumulate(sizes)], [0, *accumulate(ks)]
    residual, values, indices = flat / 2, torch.empty(sum(ks)), torch.empty(sum(ks), dtype=torch.int64)
    kernels.accumulate_select(
        flat / 2, residual, torch.tensor(bounds), torch.tensor(ks), values, indices
    )  # the halves add up to flat exactly
    for number, (name, part) in enumerate(parts.items()):
        k, kept = ks[number], slice(firsts[number], firsts[number + 1])
        if not torch.equal(values[kept].abs().sort(descending=True).values, part.abs().topk(k).values):
            return f"the kernel's values differ from torch.topk's on {name} data"
        # topk leaves open which of equal magnitudes it takes; netsim takes the lower index.
        order = part.abs().sort(descending=True, stable=True).indices
        if not torch.equal(indices[kept], order[:k].sort().values + bounds[number]):
            return f"the kernel takes other entries than the lowest of equal ones on {name} data"
    return None


def tc() -> Finding:
    """Two ranks behind a real 1 Gbit/s link, and what gets through it."""
    try:
        with TcLink(LinkSpec(2, TC_RATE_BPS)) as link:
            measured = probe(link)
            assert measured is not None
            check_rate(link, measured)
    except LinkUnavailable as error:
        return Finding("WARN", error.message, _bucket_instead(error))
    except NetsimError as error:
        return Finding("WARN", error.message, error.hint or BUCKET)
    ceiling, rate = link.spec.ceiling_bps, format_rate(TC_RATE_BPS)
    if measured.host_limited(ceiling):
        return Finding(
            "WARN",
            f"2 ranks at {rate}: {format_rate(measured.together_bps)} when both send",
            "free cores or ask for a lower --bandwidth: this host cannot carry two such links at once",
        )
    return Finding(
        "PASS", f"2 ranks at {rate}: {measured.alone_bps / 1e6:.0f} of {ceiling / 1e6:.0f} Mbit/s arrive"
    )


def _bucket_instead(error: LinkUnavailable) -> str:
    """What lifts the obstacle, and the way around it; the doctor itself must not refer to the doctor."""
    hint = error.hint or f"{namespace_remedy()}, or use --link bucket"
    if "netsim doctor" in hint:
        hint = "sudo modprobe -a veth bridge sch_tbf, if this kernel has them as modules"
    return hint if "--link bucket" in hint else f"{hint}; {BUCKET}"


def netem() -> Finding:
    """Add a real 1 ms of delay inside a link's namespace, on its own loopback device."""
    try:
        with TcLink(LinkSpec(1, TC_RATE_BPS)) as link:
            _, refusal = link.run_tool(0, "tc", *_NETEM.split())
    except NetsimError as error:
        return Finding("WARN", f"not tried without tc: {error.message}", "see tc above: netem needs it")
    if refusal is None:
        return Finding("PASS", "a 1 ms delay was added inside a namespace")
    return Finding(
        "WARN",
        f"tc refuses: {refusal.splitlines()[0].removeprefix('Error: ')}",
        CHECKS["netem"].remedy,
    )


_NETEM = "qdisc add dev lo root netem delay 1ms"


def tun() -> Finding:
    """Make a link whose packets netsim's own forwarder delays."""
    try:
        with TcLink(LinkSpec(1, TC_RATE_BPS, delay_s=1e-3, delay_by="tun")):
            return Finding(
                "PASS", "a forwarder has its device: tc links can delay and lose packets without netem"
            )
    except LinkUnavailable as error:
        remedy = error.hint or CHECKS["tun"].remedy
        return Finding("WARN", error.message, "see tc above" if "/dev/net/tun" not in remedy else remedy)


def shm() -> Finding:
    """What workers of one host meet with: semaphores."""
    HostBarrier(2, 1.0)
    if not os.path.isdir(FOLDER):
        return Finding("PASS", "semaphores can be made")
    free = os.statvfs(FOLDER)
    return Finding(
        "PASS", f"semaphores can be made; {format_bytes(free.f_bavail * free.f_frsize)} free in {FOLDER}"
    )


def gloo() -> Finding:
    """Two ranks take a dense training step over the loopback."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        return Finding("FAIL", "this torch is built without Gloo", CHECKS["gloo"].remedy)
    cell = _train(methods="dense,overlap=off", link="none", backend="gloo", device="cpu")
    return Finding("PASS", f"2 ranks over loopback: {_step(cell)} a dense step")


def gpu() -> Finding:
    """GPUs do real arithmetic, and NCCL is there for them. A machine without a GPU is in order."""
    import torch

    if not torch.cuda.is_available():
        if os.path.exists("/proc/driver/nvidia/version"):
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
            return Finding("WARN", f"an NVIDIA driver, but torch ({built}) sees no GPU", CHECKS["gpu"].remedy)
        return Finding("PASS", "no GPU: ranks compute on the CPU and use Gloo")
    count = torch.cuda.device_count()
    for number in range(count):
        if torch.ones(1, device=f"cuda:{number}").add_(1).item() != 2:
            return Finding("FAIL", f"GPU {number} computes 1 + 1 wrongly", CHECKS["gpu"].remedy)
    name = f"{count} x {torch.cuda.get_device_name(0)}"
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return Finding("WARN", f"{name}, no NCCL: ranks use Gloo", CHECKS["gpu"].remedy)
    version = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return Finding("PASS", f"{name}, NCCL {version}")


def step() -> Finding:
    """Two ranks take compressed training steps on the link that ``auto`` takes.

    A machine that is busy right now misses the link's rate, and ``netsim run`` then refuses. That is worth a
    warning; whether the step itself works is seen without the link.
    """
    try:
        cell = _train(methods=DEFAULT.name, bandwidth="100mbps")
    except LinkOffTarget as error:
        _train(methods=DEFAULT.name, link="none")
        return Finding("WARN", f"{DEFAULT.name} trains, but {error.message}", error.hint or BUCKET)
    sent = cell.summary.tx_bytes_per_step if cell.summary else None
    bytes_sent = f", {format_bytes(sent)} each" if sent is not None else ""
    return Finding(
        "PASS", f"{DEFAULT.name}, 2 ranks, {cell.link.mechanism}: {_step(cell)} a step{bytes_sent}"
    )


def _train(**values: Any) -> Cell:
    from netsim_ddp.scenario import validate
    from netsim_ddp.steps import runner

    scenario = validate({"workers": 2, "steps": 2, "warmup": 1, "repeats": 1, "timeout": "30s", **values})
    return runner.run(
        scenario, command=["netsim", "doctor"], report=lambda _: None, save=lambda _: None
    ).cells[0]


def _step(cell: Cell) -> str:
    return format_duration(cell.summary.step_s.median) if cell.summary else "no time for"


_REINSTALL = "pip install --force-reinstall torch torchvision (both from one index)"

CHECKS: Mapping[str, _Plan] = {
    "python": _Plan(python, 20, "install Python 3.11 or newer: make run PYTHON=python3.12"),
    "cores": _Plan(cores, 20, "netsim needs a POSIX system"),
    "shm": _Plan(shm, 20, REMEDY),
    "numpy": _Plan(lambda: _version("numpy"), 60, "pip install --force-reinstall numpy"),
    "torch": _Plan(lambda: _version("torch"), 120, _REINSTALL),
    "torchvision": _Plan(lambda: _version("torchvision"), 120, _REINSTALL),
    "numba": _Plan(numba, 60, "pip install numba (until then the torch twin selects, several times slower)"),
    "kernel": _Plan(
        kernel,
        180,
        "set NUMBA_CACHE_DIR to a folder you can write to; pip uninstall numba: the slower torch twin selects",
    ),
    "gpu": _Plan(
        gpu,
        120,
        "install a torch that is built for this driver and GPU; --device cpu --backend gloo work without",
    ),
    "tc": _Plan(tc, 90, "use --link bucket"),
    "netem": _Plan(
        netem,
        90,
        "tc links then have delay, jitter and loss by tun (see below) or not at all; sudo modprobe sch_netem brings it,"
        " on Ubuntu after apt install linux-modules-extra-$(uname -r)",
    ),
    "tun": _Plan(tun, 90, REMEDY_TUN),
    "gloo": _Plan(gloo, 180, _REINSTALL),
    "step": _Plan(
        step, 240, "netsim run --workers 2 --bandwidth 100mbps --method topk shows the whole error"
    ),
}
"""Every check by its name, in the order in which ``netsim doctor`` runs them."""


def run_check(name: str) -> Check:
    """Run the check of that name in a process of its own; whatever happens to it is its answer."""
    plan = CHECKS[name]
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            module_command("netsim_ddp.tools.doctor", name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=plan.deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(
            name,
            "FAIL",
            time.perf_counter() - begin,
            f"no answer within {plan.deadline_s:g} s",
            f"try again: netsim doctor {name}",
        )
    try:
        return Check(**json.loads(done.stdout))
    except ValueError:
        ended = Exit.of_code(done.returncode)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        found = f"the check's process: {ended}{', ' + said[-1] if said else ''}"
        return Check(name, "FAIL", time.perf_counter() - begin, found, plan.remedy)


def evaluate(name: str) -> Check:
    """Run the check of that name here and time it; an exception is a FAIL with its last line."""
    plan = CHECKS[name]
    begin = time.perf_counter()
    try:
        finding = plan.function()
    except NetsimError as error:
        hint = error.hint if error.hint and "netsim doctor" not in error.hint else plan.remedy
        finding = Finding("FAIL", error.message, hint)
    except Exception as error:  # noqa: BLE001 - a doctor reports what it did not expect, too
        finding = Finding("FAIL", _last_line(error), plan.remedy)
    return Check(name, finding.status, time.perf_counter() - begin, finding.found, finding.remedy)


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def main(name: str) -> None:
    die_with_parent()
    answer = os.dup(1)
    os.dup2(2, 1)  # what a library prints while it is imported is not the answer
    with os.fdopen(answer, "w", encoding="ascii") as file:
        json.dump(asdict(evaluate(name)), file)


if __name__ == "__main__":
    main(sys.argv[1])
