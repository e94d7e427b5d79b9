"""Where the commands of several hosts find rank 0's: in the store that torchrun keeps on the master's port.

A rank's task, so that only a process which has imported torch anyway and ends soon speaks torch's protocol.
"""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from netsim_ddp.ranks.task import Task


class RendezvousTask(Task):
    """Rank 0 leaves ``params["value"]`` in the store, the others wait for it; all answer it."""

    def run(self) -> None:
        params = self.job.params
        self.say(f"looking for rank 0 at {params['master']}:{params['port']}")
        timeout = timedelta(seconds=params["timeout_s"])
        server = TCPStore(params["master"], params["port"], is_master=False, timeout=timeout)
        store = PrefixStore(f"netsim-{params['run']}", server)
        if params["value"] is not None:
            store.set("command", params["value"])
        self.channel.result({"value": store.get("command").decode()})
        self.channel.gather("done")
