"""Recorded gradients that outlive the ranks which made them: anonymous memory, one file per rank."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_MARK = b"recorded"


def recorded(
    fd: int, shapes: Sequence[torch.Size], sets: int, record: Callable[[], list[list[Tensor]]]
) -> list[list[Tensor]]:
    """What ``record`` answers, from the file ``fd`` if an earlier rank has left it there.

    Args:
        shapes: of the tensors of one set, float32.

    Returns:
        ``sets`` lists of tensors that live in the file's memory.
    """
    numel = sum(shape.numel() for shape in shapes)
    size = sets * numel * 4
    if os.fstat(fd).st_size != size + len(_MARK):
        os.ftruncate(fd, size + len(_MARK))
    memory = mmap.mmap(fd, size + len(_MARK))
    rows = torch.frombuffer(memory, dtype=torch.float32, count=sets * numel).view(sets, numel)
    found = [
        [part.view(shape) for part, shape in zip(row.split([s.numel() for s in shapes]), shapes, strict=True)]
        for row in rows
    ]
    if memory[size:] != _MARK:
        for views, gradients in zip(found, record(), strict=True):
            for view, gradient in zip(views, gradients, strict=True):
                view.copy_(gradient)
        memory[size:] = _MARK
    return found
