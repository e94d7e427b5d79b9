"""How true the emulated link is: measures, and prints the page beside this file.

python reports/link.py > reports/link.md     (ten minutes; close other programs)
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

RATES = ["10mbps", "100mbps", "500mbps", "1gbps"]
PROBED = [(rate, workers) for workers in (2, 4, 8) for rate in RATES]
COMPARED = [(rate, workers) for workers in (2, 4) for rate in ("50mbps", "200mbps", "1gbps")]
STEPS = ["--compute", "20ms", "--steps", "6", "--warmup", "2", "--repeats", "1"]
METHODS = ["--method", "dense,overlap=off", "--method", "topk,overlap=off"]


def netsim(*words: str) -> dict[str, Any]:
    """One command's document; a probe that is off target answers one too."""
    print("netsim", *words, file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "netsim_ddp", *words, "--json", "-"],
        stdout=subprocess.PIPE,
        timeout=600,
        check=False,
    )
    if done.returncode not in (0, 4) or not done.stdout:
        sys.exit(f"netsim {' '.join(words)} ended with {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def off(value: float, target: float) -> str:
    return f"{100 * (value / target - 1):+.1f}%"


def probe_row(rate: str, workers: int) -> str:
    found = netsim("probe", "--bandwidth", rate, "--workers", str(workers), "--link", "tc")
    bulk = off(middle(found["alone"][0]["samples_bps"]), found["alone"][0]["ceiling_bps"])
    least = min(middle(pair["samples_bps"]) / pair["ceiling_bps"] for pair in found["together"])
    messages = [
        f"{1e3 * middle(each['samples_s']):.3g} ({off(middle(each['samples_s']), each['ideal_s'])})"
        for each in found["messages"]
    ]
    trip = f"{1e3 * middle(found['round_trip']['samples_s']):.3f}"
    link = found["link"]
    verdict = "yes" if not found["off_target"] else "no"
    cells = [rate, workers, bulk, off(least, 1), *messages, trip, link["drops"], link["retransmits"], verdict]
    return "| " + " | ".join(map(str, cells)) + " |"


def compared_rows(rate: str, workers: int) -> list[str]:
    words = ["--bandwidth", rate, "--workers", str(workers), *STEPS, *METHODS]
    tc, bucket = (netsim("run", *words, "--link", how)["cells"] for how in ("tc", "bucket"))
    rows = []
    for real, charged in zip(tc, bucket, strict=True):
        took, said = (cell["summary"]["communicate_s"] * 1e3 for cell in (real, charged))
        ranks = real["repeats"][0]["ranks"]
        sent = max(rank["tx_bytes"] / rank["predicted_tx_bytes"] for rank in ranks)
        cells = [rate, workers, real["method"], f"{took:.2f}", f"{said:.2f}", off(said, took), f"{sent:.4f}"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def main() -> None:
    first = netsim("probe", "--bandwidth", "1gbps", "--workers", "2", "--link", "tc")["environment"]
    print(f"""# How true the emulated link is

Made by `python reports/link.py` on {first["cores"]} cores, {first["cpu"]}, {first["platform"]}.

## tc: `netsim probe --bandwidth RATE --workers P --link tc`

Bulk is one pair's goodput against rate x 1448/1514, "at once" the slowest rank's while all send. Messages after idle
are medians in ms, and how far they are from their bytes with headers at the line's rate. "On target" is what the probe
itself says: bulk within 1%, messages within max(5%, 0.25 ms), 10% from five ranks on, no drops.

| rate | P | bulk | at once | 20 kB, ms | 100 kB, ms | 400 kB, ms | round trip, ms | drops | retransmits | on target |
|---|---|---|---|---|---|---|---|---|---|---|""")
    for rate, workers in PROBED:
        print(probe_row(rate, workers), flush=True)
    print(f"""
## Bucket and tc: `netsim run {" ".join([*STEPS, *METHODS])}`

Communicate time per step in ms, and the bytes at the tc link's interface against the method's formula.

| rate | P | method | tc | bucket | difference | bytes / formula |
|---|---|---|---|---|---|---|""")
    for rate, workers in COMPARED:
        print("\n".join(compared_rows(rate, workers)), flush=True)
    print("""
## What to know

- A token bucket lets one packet through at once: 1.2 ms at 10 Mbit/s, 7% of a 20 kB message.
- At 1 Gbit/s and 8 ranks on 2 cores a burst small enough for 100 kB messages starves dense all-reduce, so they get some
  credit: 0.4 ms of one. A message that follows another at once gets none.
- The bucket and tc differ by a millisecond or two where a step's exchange takes a few: rounds of small messages cost
  the host's scheduling on one and the timer's on the other.""")


if __name__ == "__main__":
    main()
