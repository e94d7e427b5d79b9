"""What a user should know of the model that the ranks have built; the command tells it before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHOWN = 3


def model_notes(model: str, facts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Sentences for the warnings.

    Args:
        facts: what each rank said when it was built; ``unused`` and ``differed`` matter.
    """
    unused: list[str] = facts[0]["unused"]
    if unused:
        named = ", ".join(unused[:SHOWN]) + (
            f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        )
        yield (
            f"model {model}: {named} took no part in a trial step: such a parameter counts as a gradient of zero, "
            "and its bytes are sent"
        )
    if facts[0]["differed"]:
        yield (
            f"model {model}: the ranks had built it with different values, from random numbers that --seed does not "
            "reach: all start with rank 0's, as under DistributedDataParallel"
        )
