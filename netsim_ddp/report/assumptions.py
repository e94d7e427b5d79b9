"""What a reader must know of how a figure came about before believing it: told alike by every table and file.

How steps were executed, what was emulated or taken from elsewhere instead of measured here, and a link that is not the
kernel's own. One list for a cell, and one for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from netsim_ddp.results.identity import READY, TCP, compute_s, outdated, recording_of, rules, settings_of
from netsim_ddp.results.labels import clean
from netsim_ddp.results.record import Cell, LinkRecord, Result
from netsim_ddp.units import format_bytes, format_duration

Assumed = dict[str, str]
"""What is assumed, by what it is about: ``{"execution": "replayed", "compute": "50 ms"}``."""
UNSHAPED = {"none": "the host's own loopback", "host": "the hosts' own network"}
GIVEN_UP = "netsim before 0.2: not compared with newer results"
_LEADS = {
    "execution": "",
    "compute": "compute emulated ",
    "recording": "compute recorded ",
    "gradients": "gradients ",
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
    if (recording := recording_of(cell, result)) is not None:
        scale = settings_of(cell, result).get("scale_compute", 1.0)
        found["recording"] = clean(recording.described + (f", x{scale:g}" if scale != 1.0 else ""))
        if recording.gradients_described:
            found["gradients"] = recording.gradients_described
    given_up = f" ({GIVEN_UP})" if outdated(cell, result) else ""
    if READY in held:
        found["ready"] = held[READY] + (given_up or _as_measured(cell, result))
    if TCP in held:
        found["tcp"] = held[TCP] + given_up
    if cell.substituted:
        found["codec"] = clean(cell.substituted)
    if cell.link.mechanism == "bucket":
        found["link"] = f"bucket{why_bucket(cell, result)}: bytes are charged, not measured"
    elif cell.link.mechanism in UNSHAPED:
        found["link"] = f"not shaped: {UNSHAPED[cell.link.mechanism]}"
    return found


def played(cells: Sequence[Cell]) -> str:
    """How replayed cells measured their work: ``2 ranks at a time, which costs them 1.02x in forward and backward and
    1.58x in memory``, medians over cells and repeats. Empty where nothing was replayed, or not said."""
    records = [cell.replay for cell in cells if cell.replay is not None]
    if not records:
        return ""
    ranks = sorted({record.at_once for record in records})
    text = f"{' or '.join(map(str, ranks))} rank{'s' * (ranks != [1])} at a time"
    compute = [value for record in records for value in record.compute_slowdown]
    memory = [value for record in records for value in record.memory_slowdown]
    if compute and memory:
        text += f", which costs them {median(compute):.2f}x in forward and backward and {median(memory):.2f}x in memory"
    return text


def _as_measured(cell: Cell, result: Result) -> str:
    """``: median of 5 passes at batch 32, forward 34%``."""
    known = [result.ready[key].described for key in cell.ready if key in result.ready]
    if not known:
        return ""
    others = f" and {len(known) - 1} like it" if len(known) > 1 else ""
    return clean(f": {known[0]}{others}")


def queue_words(link: LinkRecord) -> list[str]:
    """``["credit 30 kB", "queue 50 ms", "cubic"]``: what an idle link saves up, its queue, and who fills it."""
    words = (
        f"credit {format_bytes(link.credit_bytes)}" if link.credit_bytes else "",
        f"queue {format_duration(link.queue_s)}" if link.queue_s else "",
        clean(link.congestion or ""),
    )
    return [word for word in words if word]


def why_bucket(cell: Cell, result: Result) -> str:
    """Whether somebody wanted it, or there was nothing better: ``" as asked"``. Empty of any other link."""
    if cell.link.mechanism != "bucket":
        return ""
    asked = str(settings_of(cell, result).get("link"))
    return {"bucket": " as asked", "auto": " because tc does not work there"}.get(asked, "")
