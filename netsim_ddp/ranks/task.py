"""What every task of a rank has: its channel to the command, its job, and a word for what it is doing."""

from __future__ import annotations

from abc import ABC, abstractmethod

from netsim_ddp.ranks.channel import RankChannel
from netsim_ddp.ranks.jobs import Job, Shared


class Task(ABC):
    """What a rank runs from its start to its end; :mod:`netsim_ddp.ranks.rank` runs it and reports
    whatever ends it early.

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
