"""Momentum that knows of delay: momentum correction, momentum factor masking and local clipping (Lin et al. 2018,
Sec. 3.2 and 3.3).

An optimizer's momentum sees a delayed gradient when it arrives, all of it at once, and carries it on from there.
Correction accumulates each rank's momentum before the selection instead: with g the gradient, u the velocity and e
the residual, u = m u + g, then e + u is selected from. Masking zeroes u where it was sent, so that an old direction
does not go on. The optimizer must then have no momentum of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from netsim_ddp.compression.feedback import ErrorFeedbackBuffer


class MomentumCorrection:
    """One rank's velocity, by parameter.

    Args:
        shapes: of the parameters by name, in the order of the flat gradient [N].
        factor: m, in [0, 1).
        clip: the norm that the gradient of all ranks together may have, None for no limit. Each rank cuts its own to
            ``clip / sqrt(world_size)`` before it accumulates it, within what ``shapes`` holds.
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        device: torch.device,
        factor: float,
        clip: float | None,
        world_size: int,
    ) -> None:
        self._shapes, self._device, self._factor = shapes, device, factor
        self._limit = None if clip is None else clip / world_size**0.5
        self._buffer = ErrorFeedbackBuffer()
        self.velocity = self._buffer.flat(shapes, device)

    def correct(self, gradient: Tensor) -> None:
        """``gradient`` [N] becomes the new velocity, in place; the old one is kept until :meth:`keep`."""
        if self._limit is not None:
            norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
            if norm > self._limit:  # not where it is NaN: that is the selection's to find
                gradient.mul_(self._limit / norm)
        gradient.add_(self.velocity, alpha=self._factor)

    def keep(self, corrected: Tensor, sent: Tensor) -> None:
        """Take over the velocity ``corrected`` [N], which is 0 where it was ``sent`` (int32 positions)."""
        self.velocity.copy_(corrected)
        self.velocity[sent.long()] = 0

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
