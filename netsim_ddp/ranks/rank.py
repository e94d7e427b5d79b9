"""What a rank runs, from its start to its end, in a process that :mod:`netsim_ddp.ranks.fork_server` forked: torch is
imported and nothing else has happened."""

from __future__ import annotations

import importlib
import signal
import socket
import traceback
import warnings
from abc import ABC, abstractmethod

import torch
import torch.distributed as dist

from netsim_ddp.communication.exchange_errors import ExchangeFailed
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.errors import EXHAUSTED, EnvironmentFault, NetsimError, UsageError
from netsim_ddp.link.tc.helper import enter_namespace
from netsim_ddp.ranks.channel import RankChannel
from netsim_ddp.ranks.jobs import Job, Shared


class Task(ABC):
    """What a rank runs; :func:`run` reports whatever ends it early.

    Every task ends by handing over its result and gathering at ``done``.
    """

    def __init__(self, channel: RankChannel, job: Job, shared: Shared) -> None:
        self.channel, self.job, self.shared = channel, job, shared
        self.step = -1
        self.doing = "starting"

    @abstractmethod
    def run(self) -> None:
        """Do it. Whatever is raised reaches the command as this rank's failure."""

    def say(self, doing: str) -> None:
        """Tell the command what this rank does from now on."""
        self.doing = doing
        self.channel.progress(self.step, doing)


def task_of(name: str) -> type[Task]:
    """Returns the class of a job's ``task``, ``module:Class``: packages that this one does not import have tasks."""
    module, _, attribute = name.partition(":")
    found: type[Task] = getattr(importlib.import_module(module), attribute)
    return found


def run(connection: socket.socket, job: Job, shared: Shared) -> None:
    """Returns when the command has the rank's result; reports every failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides what Ctrl-C means
    channel = RankChannel(connection)
    _pass_warnings_on(channel)
    task = task_of(job.task)(channel, job, shared)
    try:
        if job.endpoint.namespace is not None:
            enter_namespace(job.endpoint.namespace)
        torch.set_num_threads(job.settings.threads)
        task.run()
    except ExchangeFailed as error:
        _report(channel, task, error)
    except NetsimError as error:
        kinds = {UsageError: "usage", EnvironmentFault: "environment"}
        kind = next((word for of, word in kinds.items() if isinstance(error, of)), "rank")
        channel.fail(cause=kind, message=error.message, hint=error.hint, doing=task.doing, details="")
    except OSError as error:
        if error.errno in EXHAUSTED:
            where = f": {error.filename}" if error.filename else ""
            channel.fail(
                cause="environment",
                message=f"rank {job.rank}, while {task.doing}: {error.strerror}{where}",
                hint=EXHAUSTED[error.errno],
                doing=task.doing,
                details="",
            )
        else:
            _report(channel, task, error)
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank must reach the command
        _report(channel, task, error)


def _pass_warnings_on(channel: RankChannel) -> None:
    """Python's warnings go to the command, which shows each once: eight ranks would print the same one eight times."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        del file, line
        channel.warn(f"{category.__name__}: {message} ({filename}:{lineno})")

    warnings.showwarning = show


def _report(channel: RankChannel, task: Task, error: BaseException) -> None:
    """Tell the command of an error that nobody raised on purpose, with its traceback."""
    text = str(error).strip()
    lost_peer = (
        isinstance(error, dist.DistError | ExchangeFailed) or "Connection closed" in text or "gloo" in text
    )
    channel.fail(
        cause="peer" if lost_peer and not isinstance(error, NonFiniteGradient) else "rank",
        message=f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}",
        hint=None,
        doing=task.doing,
        details="".join(traceback.format_exception(error)),
    )
