"""Entries as messages of their own length: a header that says what follows, and the codec's bytes."""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.compression.codec import Codec, CodecError

HEADER = struct.Struct("<IIII")  # status, entries, bytes behind the header, 0: keeps what follows aligned
OK, REFUSED = 0x6E657401, 0x6E657402
"""``REFUSED``: the sender found a gradient that is not finite and has nothing to send."""


class Mailbox:
    """Buffers for messages of up to ``capacity`` entries that address ``numel`` positions."""

    def __init__(self, codec: Codec, capacity: int, numel: int, device: torch.device) -> None:
        self.codec, self.capacity, self.numel, self.device = codec, capacity, numel, device

    @property
    def nbytes(self) -> int:
        """Room for the largest message."""
        return HEADER.size + self.codec.capacity(self.capacity, self.numel)

    def expected_nbytes(self, k: int) -> int:
        """About what a message of ``k`` entries takes."""
        return HEADER.size + self.codec.expected(k, self.numel)

    def buffer(self) -> Tensor:
        return torch.zeros(self.nbytes, dtype=torch.uint8, device=self.device)

    def write(self, values: Tensor, indices: Tensor, out: Tensor, received: Tensor | None = None) -> int:
        """Put the entries into ``out``; answers the message's bytes. ``received`` becomes the values that
        :meth:`read` will answer."""
        size = self.codec.encode(values, indices, out[HEADER.size :], received).numel()
        _put(out, OK, values.numel(), size)
        return HEADER.size + size

    def refuse(self, out: Tensor) -> int:
        """Say that there is nothing to send, and why; answers the message's bytes."""
        _put(out, REFUSED, 0, 0)
        return HEADER.size

    def refused(self, message: Tensor) -> bool:
        return _header(message)[0] == REFUSED

    def read(self, message: Tensor, sender: int) -> tuple[Tensor, Tensor]:
        """The entries of ``sender``'s ``message``: values float32 [k], indices int32 [k].

        Raises:
            CodecError: the message is damaged; names the sender.
        """
        status, count, size, zero = _header(message)
        if status != OK or zero or count > self.capacity or HEADER.size + size > message.numel():
            raise CodecError(f"rank {sender} sent a damaged message: it starts with {_header(message)}")
        try:
            values, indices = self.codec.decode(message[HEADER.size : HEADER.size + size], count, self.numel)
        except CodecError as error:
            raise CodecError(f"rank {sender} sent a damaged message: {error}") from error
        return values, indices.to(torch.int32)


def _put(out: Tensor, status: int, count: int, size: int) -> None:
    header = np.frombuffer(HEADER.pack(status, count, size, 0), dtype=np.uint8).copy()
    out[: HEADER.size].copy_(torch.from_numpy(header))


def _header(message: Tensor) -> tuple[int, int, int, int]:
    status, count, size, zero = HEADER.unpack(message[: HEADER.size].cpu().numpy().tobytes())
    return status, count, size, zero
