"""Real ranks for tests: one interpreter imports torch, forks ``workers`` processes and joins them over Gloo."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib.util
import json
import multiprocessing
import os
import pickle
import queue
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests import forking

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0


def on_ranks(
    function: Callable[..., Any],
    workers: int,
    *args: Any,
    bucket_bps: int | None = None,
) -> list[Any]:
    """``function(rank, workers, *args)`` of every rank, in rank order; fails with the first rank's traceback.

    With ``bucket_bps`` the ranks' group is ``netsim`` at that rate instead of plain Gloo.

    ``function`` is found by file and name, since it runs in other interpreters; what it returns is pickled.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = (function.__code__.co_filename, function.__name__, workers, args, folder, bucket_bps)
        error = _server().ask(request)
        assert not error, error
        with open(os.path.join(folder, "answer"), "rb") as file:
            found: list[Any] = pickle.load(file)
    return found


class _Server:
    """This file as a program: it imports torch once for all tests, and forks the ranks of one after the other."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process lives
        (orders, self.orders), (self.answers, answers) = os.pipe(), os.pipe()
        env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
        fds = [orders, answers, self.errors.fileno()]
        self.process = forking.fork("ranks", "", env, fds) or subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__], env=os.environ | env,
            stdin=orders, stdout=answers, stderr=self.errors,
        )  # fmt: skip
        os.close(orders)
        os.close(answers)
        atexit.register(self.close)

    def ask(self, request: Any) -> str:
        """What went wrong, or nothing. A server that fell silent or died is ended; the next test starts another."""
        order = pickle.dumps(request)
        while order:
            order = order[os.write(self.orders, order) :]
        line = b""
        while not line.endswith(b"\n") and select.select([self.answers], [], [], DEADLINE_S + 60)[0]:
            if not (read := os.read(self.answers, 1 << 16)):
                break
            line += read
        if not line:
            _server.cache_clear()
            self.close()
            self.errors.seek(0)
            return "the ranks did not answer: " + self.errors.read().decode()[-4000:]
        error: str = json.loads(line)
        return error

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)


@functools.cache
def _server() -> _Server:
    return _Server()


def _rank(rank: int, request: Any, arrivals: Any, results: Any) -> None:
    import torch
    import torch.distributed as dist

    path, name, workers, args, folder, bucket_bps = request
    torch.set_num_threads(1)
    try:
        spec = importlib.util.spec_from_file_location("ranks_of_test", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["ranks_of_test"] = module
        spec.loader.exec_module(module)
        store = f"file://{folder}/store"
        timeout = timedelta(seconds=60)
        backend = "gloo"
        if bucket_bps is not None:
            from netsim_ddp.communication.shaped import group as shaped
            from netsim_ddp.link.spec import LinkSpec

            shaped.register(LinkSpec(workers, bucket_bps), arrivals)
            backend = shaped.NAME
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=workers, timeout=timeout)
        # A rank that is done, or raises, before another is connected would look to that one like a closed connection.
        dist.barrier()
        results.put((rank, getattr(module, name)(rank, workers, *args), None))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise


def _serve(request: Any) -> str:
    from netsim_ddp.link.bucket.operations import OperationTable

    workers, folder = request[2], request[4]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arrivals = OperationTable(workers) if request[5] is not None else None
    ranks = [
        context.Process(target=_rank, args=(r, request, arrivals, results), daemon=True)
        for r in range(workers)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in ranks:
            rank, value, error = results.get(timeout=DEADLINE_S)
            if error:
                return f"rank {rank}: {error}"
            found[rank] = value
        for rank, process in enumerate(ranks):
            process.join(20)
            if process.exitcode != 0:
                return f"rank {rank} answered, and ended with exit code {process.exitcode}"
    except queue.Empty:
        return f"only ranks {sorted(found)} answered within {DEADLINE_S} s"
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            process.join()
    with open(os.path.join(folder, "answer"), "wb") as file:
        pickle.dump([found[rank] for rank in range(workers)], file)
    return ""


def prepare() -> None:
    """What all ranks need, done once: torch, the kernels, and what test modules import."""
    import pytest  # noqa: F401
    import torch._dynamo  # which a rank's first optimizer would import

    from netsim_ddp.communication import backend  # noqa: F401
    from netsim_ddp.compression import kernels
    from netsim_ddp.workloads import data

    torch.set_num_threads(1)
    kernels.warm()
    data.preload("digits")
    gc.freeze()  # half a million objects, which every rank's collector would look through and copy


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a test prints is no answer
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        print(json.dumps(_serve(request)), file=answers, flush=True)


if __name__ == "__main__":
    prepare()
    main()
