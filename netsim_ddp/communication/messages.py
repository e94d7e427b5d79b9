"""Entries as messages of their own length: a header that says what follows, and the codec's bytes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.compression.codec import Codec, CodecError
from netsim_ddp.compression.kernels import largest
from netsim_ddp.compression.runs import Runs

HEADER = struct.Struct("<IIII")  # status, entries, bytes behind the header, 0: keeps what follows aligned
Header = tuple[int, int, int, int]
ALIGNED = 64  # bytes; a message in a row of several starts where any number may
OK, REFUSED = 0x6E657401, 0x6E657402
"""``REFUSED``: the sender found a gradient that is not finite and has nothing to send."""


class Mailbox:
    """Buffers for messages of up to ``capacity`` entries that address ``numel`` positions."""

    def __init__(self, codec: Codec, capacity: int, numel: int, device: torch.device) -> None:
        self.codec, self.capacity, self.numel, self.device = codec, capacity, numel, device
        self.nbytes = HEADER.size + codec.capacity(capacity, numel)
        """Room for the largest message."""

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

    def read(self, message: Tensor, sender: int) -> tuple[Tensor, Tensor]:
        """The entries of ``sender``'s ``message``: values float32 [k], indices int32 [k].

        Raises:
            CodecError: the message is damaged; names the sender.
        """
        count, size = self.check(_header(message), sender)
        try:
            values, indices = self.codec.decode(message[HEADER.size : HEADER.size + size], count, self.numel)
        except CodecError as error:
            raise CodecError(f"rank {sender} sent a damaged message: {error}") from error
        return values, indices.to(torch.int32)

    def check(self, header: Header, sender: int) -> tuple[int, int]:
        """How many entries follow, in how many bytes.

        Raises:
            CodecError: no ``header`` says what this one does; names the sender.
        """
        status, count, size, zero = header
        if status != OK or zero or count > self.capacity or HEADER.size + size > self.nbytes:
            raise CodecError(f"rank {sender} sent a damaged message: it starts with {header}")
        return count, size


class Outbox:
    """A message to every rank, in one piece of memory, to be written together.

    Args:
        mailboxes: what the message to each rank may hold.
    """

    def __init__(self, mailboxes: Sequence[Mailbox]) -> None:
        self._mailboxes = mailboxes
        self._memory, begins, self.messages = _rooms(mailboxes)
        sizes = [mailbox.nbytes for mailbox in mailboxes]
        self._places = np.array(
            [[begin + HEADER.size, begin + size] for begin, size in zip(begins, sizes, strict=True)], np.int64
        )

    def write(
        self, values: Tensor, indices: Tensor, bounds: Sequence[int], received: Tensor | None = None
    ) -> list[int]:
        """Put the entries from ``bounds[r]`` to ``bounds[r + 1]`` into rank r's message; answers the bytes of each.
        ``received`` becomes the values that :meth:`Mailbox.read` will answer."""
        codec = self._mailboxes[0].codec
        sizes = codec.encode_all(values, indices, bounds, self._memory, self._places, received)
        parts = itertools.pairwise(bounds)
        if sizes is not None:
            for (begin, end), size, message in zip(parts, sizes, self.messages, strict=True):
                _put(message, OK, end - begin, size)
            return [HEADER.size + size for size in sizes]
        return [
            mailbox.write(
                values[begin:end],
                indices[begin:end],
                message,
                None if received is None else received[begin:end],
            )
            for (begin, end), mailbox, message in zip(parts, self._mailboxes, self.messages, strict=True)
        ]

    def refuse(self) -> list[int]:
        """Say that there is nothing to send, and why, to every rank; answers the bytes of each message."""
        return [
            mailbox.refuse(message) for mailbox, message in zip(self._mailboxes, self.messages, strict=True)
        ]


def _rooms(mailboxes: Sequence[Mailbox]) -> tuple[Tensor, list[int], list[Tensor]]:
    """Memory for a message of each, where each begins in it, and the parts of it."""
    begins = [0, *itertools.accumulate(-(-each.nbytes // ALIGNED) * ALIGNED for each in mailboxes)]
    memory = torch.zeros(begins[-1], dtype=torch.uint8, device=mailboxes[0].device)
    parts = [memory[begin : begin + each.nbytes] for begin, each in zip(begins[:-1], mailboxes, strict=True)]
    return memory, begins[:-1], parts


class Inbox:
    """A message of every rank, in one piece of memory, to be read together.

    Args:
        mailboxes: what the message of each rank may hold.
        device: where the entries are wanted.
    """

    def __init__(self, mailboxes: Sequence[Mailbox], device: torch.device) -> None:
        self._mailboxes = mailboxes
        self._memory, self._begins, self.messages = _rooms(mailboxes)
        self._runs = Runs(device)

    def refused(self) -> int | None:
        """The first rank that has nothing to send, because it found a gradient that is not finite."""
        return next((rank for rank, header in enumerate(self._headers()) if header[0] == REFUSED), None)

    def read(self, divisor: float = 1.0) -> Runs:
        """All entries, one run for each rank, values divided by ``divisor``. They lie in memory that the next call
        writes.

        Raises:
            CodecError: a message is damaged; names its sender.
        """
        runs, parts = self._runs, []
        for rank, header in enumerate(self._headers()):
            count, size = self._mailboxes[rank].check(header, rank)
            begin = self._begins[rank] + HEADER.size
            parts.append((begin, begin + size, count, self._mailboxes[rank].numel))
        if not self._mailboxes[0].codec.decode_all(self._memory, parts, runs, divisor):
            for rank, mailbox in enumerate(self._mailboxes):
                values, indices = mailbox.read(self.messages[rank], rank)
                runs.peaks[rank] = largest(values)
                into_values, into_indices = runs[rank]
                torch.div(values.to(into_values.device), divisor, out=into_values)
                into_indices.copy_(indices)
        return runs

    def _headers(self) -> list[Header]:
        if self._memory.device.type != "cpu":
            return [_header(message) for message in self.messages]
        octets = self._memory.numpy().data
        return [HEADER.unpack_from(octets, begin) for begin in self._begins]


def _put(out: Tensor, status: int, count: int, size: int) -> None:
    if out.device.type == "cpu":
        HEADER.pack_into(out.numpy().data, 0, status, count, size, 0)
        return
    header = np.frombuffer(HEADER.pack(status, count, size, 0), dtype=np.uint8).copy()
    out[: HEADER.size].copy_(torch.from_numpy(header))


def _header(message: Tensor) -> Header:
    status, count, size, zero = HEADER.unpack(message[: HEADER.size].cpu().numpy().tobytes())
    return status, count, size, zero
