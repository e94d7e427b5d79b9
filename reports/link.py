"""How true the emulated link is: measures, and writes link.json and link.md beside this file.

python reports/link.py            (a quarter of an hour; close other programs)
python reports/link.py --page     (only the page, from the file)

What an earlier call of the same version has measured is not measured again, unless --again is given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from form import keep, made_on, netsim, page, table

from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "link.json", HERE / "link.md"
PROBED = [(rate, str(workers)) for workers in (2, 4, 8) for rate in ("10mbps", "100mbps", "500mbps", "1gbps")]
DELAYED = [("100mbps", "2", "5ms"), ("100mbps", "2", "40ms"), ("1gbps", "2", "5ms"), ("100mbps", "4", "20ms")]
COMPARED = [(rate, str(workers)) for workers in (2, 4) for rate in ("50mbps", "200mbps", "1gbps")]
STEPS = ["--compute", "20ms", "--steps", "6", "--warmup", "2", "--repeats", "3"]
METHODS = ["--method", "dense,overlap=off", "--method", "topk,overlap=off", "--baseline", "none"]


def probe(*words: str) -> dict[str, Any]:
    """What is kept of ``netsim probe``."""
    found = netsim("probe", *words)
    kept = {key: found[key] for key in ("alone", "together", "messages", "round_trip", "off_target")}
    return kept | {key: found["link"].get(key) for key in ("drops", "retransmits", "credit_bytes")}


def compared(rate: str, workers: str) -> list[dict[str, Any]]:
    """Of each method what tc and the bucket took, and tc's bytes by the interface's counter over the formula's."""
    words = ["--bandwidth", rate, "--workers", workers, *STEPS, *METHODS]
    both = [netsim("run", *words, "--link", how)["cells"] for how in ("tc", "bucket")]
    rows = []
    for real, charged in zip(*both, strict=True):
        ranks = [rank for repeat in real["repeats"] for rank in repeat["ranks"]]
        rows.append(
            {
                "method": real["method"],
                "limited": real["link"]["host_limited"],
                "tc_s": [spent(repeat) for repeat in real["repeats"]],
                "bucket_s": [spent(repeat) for repeat in charged["repeats"]],
                "bytes": [rank["tx_bytes"] / rank["predicted_tx_bytes"] for rank in ranks],
            }
        )
    return rows


def spent(repeat: dict[str, Any]) -> float:
    """The median step's communication, of the slowest rank."""
    steps = zip(*(rank["steps"] for rank in repeat["ranks"]), strict=True)
    return median(max(step["communicate_s"] for step in row) for row in steps)


def off(value: float, target: float) -> float:
    return 100 * (value / target - 1)


def spread(samples: list[float], digits: str = ".3g") -> str:
    """The median with the lowest and the highest, in ms."""
    low, middle, high = (f"{1e3 * value:{digits}}" for value in (min(samples), median(samples), max(samples)))
    return f"{middle} ({low}..{high})"


def bulk_row(words: list[str], found: dict[str, Any]) -> list[object]:
    alone = median(found["alone"][0]["samples_bps"]) / found["alone"][0]["ceiling_bps"]
    least = min(median(pair["samples_bps"]) / pair["ceiling_bps"] for pair in found["together"])
    messages = [
        f"{1e3 * median(each['samples_s']):.3g} ({off(median(each['samples_s']), each['ideal_s']):+.1f}%)"
        for each in found["messages"]
    ]
    verdict = "; ".join(found["off_target"]) or "yes"
    return [*words, f"{off(alone, 1):+.1f}%", f"{off(least, 1):+.1f}%", *messages, found["drops"], verdict]


def delay_row(words: list[str], found: dict[str, Any]) -> list[object]:
    return [
        *words,
        f"{1e3 * found['round_trip']['asked_s']:g}",
        spread(found["round_trip"]["samples_s"], ".2f"),
        f"{off(median(found['alone'][0]['samples_bps']), found['alone'][0]['ceiling_bps']):+.1f}%",
        *(
            f"{1e3 * median(each['samples_s']):.4g} ({off(median(each['samples_s']), each['ideal_s']):+.1f}%)"
            for each in found["messages"]
        ),
    ]


def answer(probes: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    alone = [off(median(each["alone"][0]["samples_bps"]), each["alone"][0]["ceiling_bps"]) for each in probes]
    least = min(
        median(pair["samples_bps"]) / pair["ceiling_bps"] for each in probes for pair in each["together"]
    )
    counted = [share for row in rows for share in row["bytes"]]
    on_target = sum(not each["off_target"] for each in probes)
    return (
        f"One pair of ranks alone got {min(alone):+.1f}% to {max(alone):+.1f}% of what the rate leaves after headers, "
        f"the slowest of all at once {100 * least:.0f}% at least, and {on_target} of {len(probes)} settings are on "
        f"target by `netsim probe`'s own rule. The interface counted {min(counted):.3f} to {max(counted):.3f} times "
        "the bytes of the methods' formulas."
    )


def text(kept: dict[str, Any]) -> str:
    """The page."""
    probes = [kept["probes"][" ".join(words)] for words in PROBED]
    rows = [row for words in COMPARED for row in kept["compared"][" ".join(words)]]
    named = [(words, row) for words in COMPARED for row in kept["compared"][" ".join(words)]]
    sizes = [f"{each['size_bytes'] // 1000} kB, ms" for each in probes[0]["messages"]]
    return page(
        "How true the emulated link is",
        "Does a rank's tc interface carry the rate, the messages and the delay that were asked for, and does the "
        "user-space bucket take as long?",
        answer(probes, rows),
        [
            "## Rate and messages",
            "`netsim probe --bandwidth RATE --workers P --link tc`. Bulk is one pair's goodput against rate x "
            "1448/1514, "
            '"at once" the slowest rank\'s while all send. Messages after a pause are medians, and how far they are '
            "from "
            "their bytes with headers at the line's rate. \"On target\" is the probe's own rule: bulk within 1%, "
            "messages within max(3%, 0.1 ms), no drops; what is not, is said.",
            table(
                ["rate", "P", "bulk", "at once", *sizes, "drops", "on target"],
                [bulk_row(list(words), each) for words, each in zip(PROBED, probes, strict=True)],
            ),
            "## Delay",
            "`netsim probe --bandwidth RATE --workers P --delay DELAY --link tc`. Round trips of one byte are medians, "
            "with the lowest and the highest; bulk is measured without the delay, as the window of one TCP connection "
            "would limit it. A message is held against its bytes at the line's rate and one delay: TCP's window may "
            "need further round trips, which [tcp.md](tcp.md) is about.",
            table(
                ["rate", "P", "delay", "round trip asked, ms", "measured, ms", "bulk", *sizes],
                [delay_row(list(words), kept["delayed"][" ".join(words)]) for words in DELAYED],
            ),
            "## The user-space bucket against tc",
            f"`netsim run --bandwidth RATE --workers P {' '.join([*STEPS, *METHODS])} --link HOW`. Communication per "
            "step in ms: the median of three repeats with the lowest and the highest; and the bytes at the tc link's "
            "interface over the method's formula.",
            table(
                ["rate", "P", "method", "tc", "bucket", "difference", "bytes / formula"],
                [
                    [
                        *words,
                        row["method"] + (" (host-limited)" if row["limited"] else ""),
                        spread(row["tc_s"], ".4g"),
                        spread(row["bucket_s"], ".4g"),
                        f"{off(median(row['bucket_s']), median(row['tc_s'])):+.1f}%",
                        f"{min(row['bytes']):.4f}..{max(row['bytes']):.4f}",
                    ]
                    for words, row in named
                ],
            ),
        ],
        [
            "`python reports/link.py` (a quarter of an hour). Every sample is in [link.json](link.json).",
            f"Made on {made_on(kept['environment'], kept['commit'])}.",
        ],
        [
            "Another host: a bucket is refilled when the kernel wakes up, and that is the host's. `netsim probe` "
            "measures yours.",
            "A token bucket lets one packet through at once, 1.2 ms at 10 Mbit/s, so that a small message after a "
            "pause comes early by it; one that follows another at once does not.",
            "From five ranks on at 1 Gbit/s, two cores need larger packets: 100 kB messages after a pause are early by "
            "what a bucket then holds.",
            "The bucket and tc differ by a millisecond or two where a step's exchange takes a few: rounds of small "
            "messages cost the host's scheduling on one and the timer's on the other.",
        ],
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    given = parser.parse_args(words)
    kept: dict[str, Any] = {
        "environment": environment(),
        "commit": code_of([])[0].commit,
        "probes": {},
        "delayed": {},
        "compared": {},
    }
    if FILE.exists() and not given.again:
        kept = json.loads(FILE.read_text())
    if not given.page:
        for words_ in PROBED:
            once(
                kept,
                "probes",
                words_,
                lambda rate, workers: probe("--bandwidth", rate, "--workers", workers, "--link", "tc"),
            )
        for words_ in DELAYED:
            once(
                kept,
                "delayed",
                words_,
                lambda rate, workers, delay: probe(
                    "--bandwidth", rate, "--workers", workers, "--delay", delay, "--link", "tc"
                ),
            )
        for words_ in COMPARED:
            once(kept, "compared", words_, compared)
    PAGE.write_text(text(kept))


def once(kept: dict[str, Any], part: str, words: tuple[str, ...], measure: Callable[..., object]) -> None:
    """Measure what is not kept yet, and keep it."""
    if (name := " ".join(words)) not in kept[part]:
        kept[part][name] = measure(*words)
        keep(FILE, kept)


if __name__ == "__main__":
    main()
