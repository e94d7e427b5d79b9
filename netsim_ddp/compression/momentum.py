"""Momentum that knows of delay: momentum correction, momentum factor masking and local clipping (Lin et al. 2018,
Sec. 3.2 and 3.3).

An optimizer's momentum sees a delayed gradient when it arrives, all of it at once, and carries it on from there.
Correction accumulates each rank's momentum before the selection instead: with g the gradient, u the velocity and e
the residual, u = m u + g, then e + u is selected from. Masking zeroes u where it was sent, so that an old direction
does not go on. The optimizer must then have no momentum of its own.

Masking also takes away what u would still have carried on: of gradients that waited w steps on average, a share of
about 1 / (w (1 - m)). At a ratio of 0.1 that is all of the momentum (plain SGD is left at a tenth of the rate), at
0.001 next to nothing. So by default only entries of segments that send rarely are masked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from netsim_ddp.compression.feedback import ErrorFeedbackBuffer

MASKED_AFTER = 2
"""Memories of the momentum, 1 / (1 - m) steps each, that an entry must wait on average for ``masking=auto`` to mask
it. From there on stale directions do harm (tests/distributed/test_optimizers.py diverges without masking at two); at
one, masking takes more than it gives."""


class MomentumCorrection:
    """One rank's velocity, by parameter.

    Args:
        shapes: of the parameters by name, in the order of the flat gradient [N].
        factor: m, in [0, 1).
        clip: the norm that the gradient of all ranks together may have, None for no limit. Each rank cuts its own to
            ``clip / sqrt(world_size)`` before it accumulates it, within what ``shapes`` holds.
        masking: ``on`` wherever an entry was sent (Lin et al. 2018), ``off``, or ``auto``.
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        device: torch.device,
        factor: float,
        clip: float | None,
        world_size: int,
        masking: str = "auto",
    ) -> None:
        self._factor = factor
        self._limit = None if clip is None else clip / world_size**0.5
        self.masked_wait = {"on": 0.0, "off": math.inf, "auto": round(MASKED_AFTER / (1 - factor), 6)}[
            masking
        ]
        """Steps that an entry must wait on average to be masked when it is sent."""
        self._buffer = ErrorFeedbackBuffer()
        self.velocity = self._buffer.flat(shapes, device)

    def correct(self, gradient: Tensor) -> None:
        """``gradient`` [N] becomes the new velocity, in place; the old one is kept until :meth:`keep`."""
        if self._limit is not None:
            norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
            if norm > self._limit:  # not where it is NaN: that is the selection's to find
                gradient.mul_(self._limit / norm)
        gradient.add_(self.velocity, alpha=self._factor)

    def keep(self, corrected: Tensor, masked: Tensor) -> None:
        """Take over the velocity ``corrected`` [N], but 0 at the positions ``masked`` (int32 [k])."""
        self.velocity.copy_(corrected)
        self.velocity[masked.long()] = 0

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    def state_dict(self) -> dict[str, Tensor]:
        return self._buffer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved velocities.

        Raises:
            ValueError: they are other parameters', or not finite.
        """
        self._buffer.load_state_dict(state)
