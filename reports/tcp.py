"""TCP on the bucket link against the kernel's: measures, emulates, and writes tcp.json and tcp.md beside this file.

python reports/tcp.py            (root and /dev/net/tun; six minutes; close other programs)
python reports/tcp.py --seconds 180     (begins no trace after that; run it again for the rest)
python reports/tcp.py --emulate         (measures nothing: the emulated column and the page anew)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tcp_line import trace

from netsim_ddp.link.bucket import BucketSpec, LinkClock
from netsim_ddp.link.schedule import PREAMBLE_BYTES, Operation
from netsim_ddp.link.tcp import TcpSettings

HERE = Path(__file__).parent
SIZES = (15_000, 164_000, 1_000_000, 10_000_000, 60_000_000)
IDLES_S = (0.1, 1.0)
RATES_BPS = (100_000_000, 1_000_000_000)
ROUND_TRIPS_S = (0.001, 0.01, 0.04, 0.08)
SMALLEST = 8  # bytes: what the line itself adds to its delay shows in them
MESSAGES = 8
DEADLINE_S = 120.0
UNDELAYED = {"size": 60_000_000, "idle_s": 0.1, "round_trip_s": 0.0, "rate_bps": 10**12}

Setting = dict[str, Any]


def settings() -> list[Setting]:
    grid = [
        {"size": size, "idle_s": idle, "round_trip_s": trip, "rate_bps": rate}
        for size in SIZES
        for rate in RATES_BPS
        for trip in ROUND_TRIPS_S
        for idle in IDLES_S
    ]
    empty = [
        {"size": SMALLEST, "idle_s": 0.1, "round_trip_s": trip, "rate_bps": rate}
        for rate in RATES_BPS
        for trip in ROUND_TRIPS_S
    ]
    return [UNDELAYED, *empty, *grid]


def together(setting: Setting) -> int:
    """How many traces like this one a small machine carries at once: one message at a time is nearly no load."""
    if setting["round_trip_s"] <= 0.001 or setting["size"] == SMALLEST:
        return 1
    if setting["rate_bps"] > 10**8:
        return 2 if setting["size"] <= 1_000_000 else 1
    return 3


def measured(setting: Setting) -> list[dict[str, Any]]:
    """A trace in processes of its own, which all end with it."""
    words = [sys.executable, __file__, "--one", json.dumps(setting)]
    done = subprocess.run(words, stdout=subprocess.PIPE, timeout=DEADLINE_S + 30, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def measure(seconds: float, found: list[dict[str, Any]], path: Path) -> bool:
    """Add the traces that are missing; whether all are there."""
    until = time.monotonic() + seconds
    have = [row["setting"] for row in found]
    missing = [setting for setting in settings() if setting not in have]
    for width in (1, 2, 3):
        mine = [setting for setting in missing if together(setting) == width]
        with ThreadPoolExecutor(width) as pool:

            def one(setting: Setting) -> None:
                if time.monotonic() < until:
                    rows = measured(setting)
                    print(
                        setting, [round(row["seconds"] * 1e3, 1) for row in rows], file=sys.stderr, flush=True
                    )
                    found.append({"setting": setting, "messages": rows})

            try:
                list(pool.map(one, mine))
            finally:
                path.write_text(json.dumps(found))
    return len(found) == len(settings())


def emulated(setting: Setting, settings_of_host: TcpSettings | None) -> list[float]:
    """Seconds of the same messages by the bucket link's own clock, the pauses between them as in the measurement."""
    way = setting["round_trip_s"] / 2
    spec = BucketSpec.uniform(2, setting["rate_bps"], delay_s=way / 2, handshake=False, tcp=settings_of_host)
    clock, now, times = LinkClock(spec), 1.0, []
    for _ in range(MESSAGES):
        now += setting["idle_s"]
        there = clock.complete(Operation("send", setting["size"] - PREAMBLE_BYTES), (now, now)).deadline
        times.append(there - now)
        now = there + way
    return times


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one:
        one = given.one
        rows = trace(
            one["rate_bps"], one["round_trip_s"] / 2, one["size"], one["idle_s"], MESSAGES, DEADLINE_S
        )
        print(json.dumps(rows))
        return
    path = Path("/tmp/tcpm/raw.json")
    found = json.loads(path.read_text()) if path.exists() else []
    print(measure(given.seconds, found, path))


if __name__ == "__main__":
    main()
