"""Two real ranks over Gloo on this host, which run one step whenever they are told to; for benchmarks.

A round's time is that of both ranks and of two words over pipes (some 0.1 ms). Nothing throttles their network: what is
measured is what the code costs, not the link.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

WORKERS = 2
DEADLINE_S = 120.0


class Pair:
    """The ranks, from :meth:`__enter__` to :meth:`__exit__`, which kills what does not end by itself.

    Args:
        job: called on every rank as ``job(*args)``; gives what prepares a step and what runs it, and a dict of facts.
    """

    def __init__(self, job: Callable[..., Any], *args: Any) -> None:
        self._job, self._args = job, args
        self.facts: dict[str, Any] = {}
        self.processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Pair:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="netsim-benchmark-"))
            context = multiprocessing.get_context("spawn")
            stack.callback(self._end)
            for rank in range(WORKERS):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(rank, folder, theirs, self._job, self._args), daemon=True
                )
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self.processes.append(process)
            self.facts = self._answers()[0]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self) -> None:
        """What the next step needs, untimed."""
        self._tell("prepare")

    def step(self) -> None:
        """One step of both ranks."""
        self._tell("step")

    def _tell(self, word: str) -> None:
        for pipe in self._pipes:
            pipe.send(word)
        self._answers()

    def _answers(self) -> list[Any]:
        found = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(DEADLINE_S), f"rank {rank} did not answer within {DEADLINE_S:g} s"
            answer = pipe.recv()
            assert not isinstance(answer, Exception), f"rank {rank}: {answer}"
            found.append(answer)
        return found

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # a rank that is told nothing more ends
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(rank: int, folder: str, pipe: Connection, job: Callable[..., Any], args: Any) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=WORKERS,
            timeout=timedelta(seconds=DEADLINE_S),
        )
        prepare, step, facts = job(*args)
        pipe.send(facts)
        while True:
            {"prepare": prepare, "step": step}[pipe.recv()]()
            pipe.send(None)
    except EOFError:  # the benchmark is over
        dist.destroy_process_group()
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        raise


def exchange(method: str, params: dict[str, Any]) -> Any:
    """The gradients of ``simple_cnn``, 1.08M floats, averaged by ``method``; fresh ones before every step."""
    import torch
    import torch.distributed as dist

    from netsim_ddp import DistributedBackend, get_model
    from netsim_ddp.communication.cost import payload_bytes

    model = get_model("simple_cnn", 10, seed=0)
    parameters = list(model.named_parameters())
    generator = torch.Generator().manual_seed(dist.get_rank())
    fresh = [torch.randn(parameter.shape, generator=generator) for _, parameter in parameters]
    backend = DistributedBackend(method=method, params=params)

    def prepare() -> None:
        for (_, parameter), gradient in zip(parameters, fresh, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad.copy_(gradient)

    def step() -> None:
        backend.allreduce_gradients(parameters)

    prepare()
    step()
    return prepare, step, {"bytes": payload_bytes(backend._segments)}


def training_step(method: str, params: dict[str, Any]) -> Any:
    """Forward, backward, exchange and SGD of ``simple_cnn`` on 32 digits per rank."""
    import torch
    import torch.distributed as dist

    from netsim_ddp import DistributedBackend
    from netsim_ddp.workloads.workload import build_workload

    workload = build_workload(rank=dist.get_rank(), world_size=WORKERS)
    backend = DistributedBackend(method=method, params=params)
    optimizer = torch.optim.SGD(workload.model.parameters(), lr=0.1)
    batch: list[Any] = []

    def prepare() -> None:
        batch[:] = workload.next_batch()

    def step() -> None:
        images, targets = batch
        optimizer.zero_grad()
        workload.loss(workload.model(images), targets).backward()
        backend.allreduce_gradients(workload.model.named_parameters())
        optimizer.step()

    prepare()
    step()
    return prepare, step, {}
