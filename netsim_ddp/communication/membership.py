"""Which place this rank has among the others: asked when it is needed, not when an object is made.

Trainers make a hook's state, or unpickle it, before ``init_process_group`` (Lightning's ``ddp_comm_state`` forces that
order). A place that was fixed then would be rank 0 of 1 on every rank, and each would train a model of its own.
"""

from __future__ import annotations

import os
import weakref

import torch.distributed as dist

from netsim_ddp.communication.segments import Group

WORLD_SIZE = "WORLD_SIZE"
"""Where torchrun and its like say how many ranks there will be."""


class Membership:
    """This rank's place in a process group, looked up whenever it is asked for.

    Args:
        process_group: default torch's default group, whichever that is when :meth:`group` is called.
        rank, world_size: what the caller takes them to be; checked against the process group.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._process_group, self._rank, self._world_size = process_group, rank, world_size
        self._of: weakref.ref[dist.ProcessGroup] | None = None
        self._found: Group | None = None
        self.is_fixed = False
        """Whether the place was looked up by somebody else, who has also compared what the ranks are about to do."""

    @classmethod
    def fixed(cls, group: Group) -> Membership:
        """A place that somebody else has looked up."""
        membership = cls(group.process_group)
        membership._found, membership.is_fixed = group, True
        return membership

    @property
    def is_known(self) -> bool:
        """Whether there is a process group to look this rank up in."""
        return self.is_fixed or (dist.is_available() and dist.is_initialized())

    def group(self) -> Group:
        """This rank's place now; the same object until the process group is another.

        Raises:
            RuntimeError: there is no process group and there should be one, or the one given is gone.
            ValueError: this rank is not in it, or it is not of the rank and size that the caller said.
        """
        if self.is_fixed and self._found is not None:
            return self._found
        if not self.is_known:
            self._of = None
            if self._found is None or self._found.world_size > 1:
                self._found = self._alone()
            return self._found
        process_group = self._process_group or dist.group.WORLD
        assert process_group is not None
        try:
            rank = dist.get_rank(process_group)
        except ValueError:
            raise RuntimeError(
                "the process group that was given here is destroyed: give the new one, or None for torch's default"
            ) from None
        if self._of is not None and self._of() is process_group and self._found is not None:
            return self._found
        self._found = self._checked(rank, dist.get_world_size(process_group))
        self._of = weakref.ref(process_group)
        return self._found

    def _alone(self) -> Group:
        if self._process_group is not None:
            raise RuntimeError("the process group that was given here is destroyed, and there is no other")
        if self._world_size not in (None, 1):
            raise RuntimeError(
                f"world_size={self._world_size}, and torch.distributed is not initialized: call "
                "torch.distributed.init_process_group() before the first exchange"
            )
        ranks = os.environ.get(WORLD_SIZE, "1")
        if self._world_size is None and ranks.strip() not in ("", "1"):
            raise RuntimeError(
                f"the environment says {WORLD_SIZE}={ranks}, and torch.distributed is not initialized: call "
                "torch.distributed.init_process_group() before the first exchange, or unset it to train alone"
            )
        return Group(0, 1)

    def _checked(self, rank: int, world_size: int) -> Group:
        if rank < 0:
            raise ValueError("this rank is not a member of the process group that was given here")
        for name, said, found in (("world_size", self._world_size, world_size), ("rank", self._rank, rank)):
            if said is not None and said != found:
                raise ValueError(
                    f"{name}={said} was given, and the process group has {name} {found}: leave {name} out"
                )
        return Group(rank, world_size, self._process_group)
