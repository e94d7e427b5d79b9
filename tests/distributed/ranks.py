"""Real ranks for tests: one interpreter imports torch, forks ``workers`` processes and joins them over Gloo."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

DEADLINE_S = 120.0


def on_ranks(
    function: Callable[..., Any], workers: int, *args: Any, bucket_bps: int | None = None
) -> list[Any]:
    """``function(rank, workers, *args)`` of every rank, in rank order; fails with the first rank's traceback.

    With ``bucket_bps`` the ranks' group is ``netsim`` at that rate instead of plain Gloo.

    ``function`` is found by file and name, since it runs in other interpreters; what it returns is pickled.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = os.path.join(folder, "answer")
        request = (function.__code__.co_filename, function.__name__, workers, args, folder, bucket_bps)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__],
            input=pickle.dumps(request),
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            timeout=DEADLINE_S + 60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-4000:]
        with open(answer, "rb") as file:
            found: list[Any] = pickle.load(file)
    return found


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
            from netsim_ddp.communication import shaped
            from netsim_ddp.link.bucket import BucketSpec

            shaped.register(BucketSpec.uniform(workers, bucket_bps), arrivals)
            backend = shaped.NAME
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=workers, timeout=timeout)
        results.put((rank, getattr(module, name)(rank, workers, *args), None))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise


def main() -> None:
    import torch  # noqa: F401 - imported once, before the fork

    from netsim_ddp.link.arrivals import ArrivalTable

    request = pickle.load(sys.stdin.buffer)
    workers, folder = request[2], request[4]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arrivals = ArrivalTable(workers)
    ranks = [
        context.Process(target=_rank, args=(rank, request, arrivals, results), daemon=True)
        for rank in range(workers)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in ranks:
            rank, value, error = results.get(timeout=DEADLINE_S)
            if error:
                sys.exit(f"rank {rank}: {error}")
            found[rank] = value
        for process in ranks:
            process.join(20)
    except queue.Empty:
        sys.exit(f"only ranks {sorted(found)} answered within {DEADLINE_S} s")
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
    with open(os.path.join(folder, "answer"), "wb") as file:
        pickle.dump([found[rank] for rank in range(workers)], file)


if __name__ == "__main__":
    main()
