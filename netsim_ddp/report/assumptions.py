"""What a reader must know of how a figure came about before believing it: told alike by every table and file.

How steps were executed, what was emulated or taken from elsewhere instead of measured here, and a link that is not the
kernel's own. One list for a cell, and one for many.
"""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.report.wording import clean
from netsim_ddp.results.identity import READY, TCP, compute_s, outdated, rules, settings_of
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.units import format_duration

Assumed = dict[str, str]
"""What is assumed, by what it is about: ``{"execution": "replayed", "compute": "50 ms"}``."""
UNSHAPED = {"none": "the host's own loopback", "host": "the hosts' own network"}
GIVEN_UP = "netsim before 0.2: not compared with newer results"
_LEADS = {
    "execution": "",
    "compute": "compute emulated ",
    "ready": "buckets become full ",
    "codec": "codec SUBSTITUTED: ",
    "link": "link ",
    "tcp": "TCP on the bucket ",
}


def assumptions(cells: Sequence[Cell], result: Result, *, without: Sequence[str] = ()) -> list[str]:
    """``["replayed", "compute emulated 50 ms", "link bucket as asked: bytes are charged, not measured"]``: of all
    ``cells`` of ``result``, each value once; ``without`` are the keys of :data:`Assumed` that are told elsewhere."""
    all_of = [assumed(cell, result) for cell in cells]
    found = []
    for key, lead in _LEADS.items():
        values = dict.fromkeys(each[key] for each in all_of if key in each)
        if values and key not in without:
            # The baseline has no codec to substitute, and what does not overlap has no buckets; anything else that only
            # some have is worth a word.
            some = (
                "" if key in ("codec", "ready") or all(key in each for each in all_of) else " in some cells"
            )
            found.append(f"{lead}{', '.join(values)}{some}")
    return found


def assumed(cell: Cell, result: Result) -> Assumed:
    """What is assumed of one cell."""
    found: Assumed = {"execution": cell.execution}
    held = rules(cell, result)
    if (compute := compute_s(cell, result)) > 0:
        found["compute"] = format_duration(compute)
    given_up = f" ({GIVEN_UP})" if outdated(cell, result) else ""
    for key, about in (("ready", READY), ("tcp", TCP)):
        if about in held:
            found[key] = held[about] + given_up
    if cell.substituted:
        found["codec"] = clean(cell.substituted)
    if cell.link.mechanism == "bucket":
        found["link"] = f"bucket{why_bucket(cell, result)}: bytes are charged, not measured"
    elif cell.link.mechanism in UNSHAPED:
        found["link"] = f"not shaped: {UNSHAPED[cell.link.mechanism]}"
    return found


def why_bucket(cell: Cell, result: Result) -> str:
    """Whether somebody wanted it, or there was nothing better: ``" as asked"``. Empty of any other link."""
    if cell.link.mechanism != "bucket":
        return ""
    asked = str(settings_of(cell, result).get("link"))
    return {"bucket": " as asked", "auto": " because tc does not work there"}.get(asked, "")
