"""How sure predicted figures are, in sentences below a table."""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.results.prediction_errors import SHARE
from netsim_ddp.results.record import Cell

UNKNOWN = (
    "How far these predictions may be off is not known: netsim predict --validate RUN.json --json FILE holds some "
    "against measured runs, and --errors FILE puts its errors beside each figure."
)


def uncertainty(cells: Sequence[Cell]) -> list[str]:
    """What the ± of predicted cells are, and what of them is extrapolated."""
    predicted = [cell for cell in cells if cell.execution == "predicted" and cell.summary]
    if not predicted:
        return []
    known = [cell.prediction_error for cell in predicted if cell.prediction_error is not None]
    if not known:
        return [UNKNOWN]
    counts = sorted({each.cells for each in known})
    of = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    found = [
        f"± holds {SHARE:.0%} of how far predictions were off in {of} measured cells of the same method, or of all "
        f"methods where it has few ({known[0].source})."
    ]
    beyond = dict.fromkeys(text for each in known for text in each.beyond)
    if beyond:
        found.append(f"Extrapolated, so the ± may be too small: {'; '.join(beyond)}.")
    return found
