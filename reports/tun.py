"""What a delayed tc link without netem carries here: measures, and writes tun.json and tun.md beside this file.

python reports/tun.py             (five minutes; close other programs)
python reports/tun.py --page      (only the page, from the file)

Each row is a link of its own, made by ``--delay-by tun`` and measured with plain TCP sockets, as ``netsim probe`` does.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from form import keep, made_on, page, table

from netsim_ddp.link.probe.probe import Peers
from netsim_ddp.link.spec import LinkSpec, goodput
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment
from netsim_ddp.units import format_rate

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "tun.json", HERE / "tun.md"
MBIT = 10**6
SECONDS, PINGS = 2.0, 21
Row = dict[str, Any]


def rates() -> list[Row]:
    rows = []
    for workers in (2, 4):
        for rate_bps in (100 * MBIT, 1000 * MBIT):
            for delay_s in (0.0, 0.01, 0.04):
                spec = LinkSpec(workers, rate_bps, delay_s=delay_s, delay_by="tun", congestion="reno")
                # One connection cannot have more than 4 MB on its way (tcp_wmem), and needs time to come to that.
                streams = 1 + int(2 * delay_s * rate_bps / 8 / 1_000_000)
                seconds = max(SECONDS, 30 * 2 * delay_s)
                with TcLink(spec) as link, Peers(link) as peers:
                    trips = peers.pings((0, 1), PINGS)
                    (alone,) = peers.bulk([(0, 1)], seconds, streams)
                    together = min(peers.bulk(list(spec.ring()), seconds, streams))
                shares = {"alone": alone / goodput(rate_bps), "together": together / goodput(rate_bps)}
                rows.append(
                    {
                        "workers": workers,
                        "rate_bps": rate_bps,
                        "delay_s": delay_s,
                        **shares,
                        "round_trips_s": trips,
                    }
                )
    return rows


def losses() -> list[Row]:
    rows = []
    for workers, rate_bps in ((2, 100 * MBIT), (4, 100 * MBIT), (2, 300 * MBIT), (2, 1000 * MBIT)):
        spec = LinkSpec(workers, rate_bps, delay_s=0.002, loss=0.01, delay_by="tun")
        with TcLink(spec) as link, Peers(link) as peers:
            with link.bare():
                slowest = min(peers.bulk(list(spec.ring()), SECONDS))
            before = link.carried()
            peers.bulk(list(spec.ring()), 2 * SECONDS)
            after = link.carried()
        taken, lost = (sum(b) - sum(a) for a, b in ((before.taken, after.taken), (before.lost, after.lost)))
        rows.append(
            {
                "workers": workers,
                "rate_bps": rate_bps,
                "taken": taken,
                "lost": lost,
                "share": slowest / goodput(rate_bps),
                "largest": after.largest,
            }
        )
    return rows


def jitters() -> list[Row]:
    rows = []
    for reorder in (False, True):
        spec = LinkSpec(2, 100 * MBIT, delay_s=0.01, jitter_s=0.004, reorder=reorder, delay_by="tun")
        with TcLink(spec) as link, Peers(link) as peers:
            rows.append({"reorder": reorder, "round_trips_s": peers.pings((0, 1), 150)})
    return rows


def spread_ms(samples: list[float]) -> str:
    """``20.2 (20.1..20.9)``: the median, and the 10th and 90th percentile."""
    tenths = quantiles(samples, n=10)
    return f"{median(samples) * 1e3:.2f} ({tenths[0] * 1e3:.2f}..{tenths[-1] * 1e3:.2f})"


def text(kept: dict[str, Any]) -> str:
    """The page."""
    late = [1e3 * (median(row["round_trips_s"]) - 2 * row["delay_s"]) for row in kept["rates"]]
    least = {
        workers: min(row["together"] for row in kept["rates"] if row["workers"] == workers)
        for workers in (2, 4)
    }
    lost = [row["lost"] / row["taken"] for row in kept["losses"]]
    return page(
        "Real packets delayed in user space: what `--delay-by tun` carries",
        "What rates, delays and losses does a tc link keep on a kernel without netem, where a process of netsim's own "
        "delays each packet?",
        f"Round trips are {min(late):.2f} to {max(late):.2f} ms longer than asked for, and of packets that were to be "
        f"lost at 1%, {min(lost):.2%} to {max(lost):.2%} were. All at once, the slowest of two ranks got "
        f"{least[2]:.0%} of the line at least, of four ranks {least[4]:.0%}: ranks and forwarder share the cores.",
        [
            "## Rates and round trips",
            "Rates are TCP goodput as a share of what the line leaves after headers, by as many connections as fill "
            "the line (reno, whose slow start is not cut short by a busy host's delays). Round trips are of one byte: "
            "the median, and the 10th and 90th percentile.",
            table(
                ["ranks", "line", "one pair", "all at once, slowest", "round trip asked, ms", "measured, ms"],
                [
                    [
                        row["workers"],
                        format_rate(row["rate_bps"]),
                        f"{row['alone']:.1%}",
                        f"{row['together']:.1%}",
                        f"{2e3 * row['delay_s']:g}",
                        spread_ms(row["round_trips_s"]),
                    ]
                    for row in kept["rates"]
                ],
            ),
            "## Loss",
            "Packets hold one segment each here, which costs the forwarder more.",
            table(
                [
                    "ranks",
                    "line",
                    "loss asked",
                    "packets",
                    "lost",
                    "rate with neither delay nor loss",
                    "largest frame, bytes",
                ],
                [
                    [
                        row["workers"],
                        format_rate(row["rate_bps"]),
                        "1%",
                        row["taken"],
                        f"{row['lost'] / row['taken']:.2%}",
                        f"{row['share']:.1%}",
                        row["largest"],
                    ]
                    for row in kept["losses"]
                ],
            ),
            "## Jitter",
            table(
                ["delay", "jitter", "order", "round trips, ms: median (10th..90th percentile)"],
                [
                    ["10 ms", "4 ms", "free" if row["reorder"] else "kept", spread_ms(row["round_trips_s"])]
                    for row in kept["jitters"]
                ],
            ),
        ],
        [
            "`python reports/tun.py` (five minutes). Every sample is in [tun.json](tun.json).",
            f"Made on {made_on(kept['environment'], kept['commit'])}; load average when it began: {kept['load']:.1f}.",
        ],
        [
            "A machine with more cores: here the forwarder takes them from the ranks, so the rates are lower bounds.",
            "One measurement of each rate: no interval.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    if not parser.parse_args().page:
        kept = {"environment": environment(), "commit": code_of([])[0].commit, "load": os.getloadavg()[0]}
        keep(FILE, kept | {"rates": rates(), "losses": losses(), "jitters": jitters()})
    PAGE.write_text(text(json.loads(FILE.read_text())))


if __name__ == "__main__":
    main()
