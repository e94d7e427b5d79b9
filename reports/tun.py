"""What a delayed tc link without netem carries on this machine: python reports/tun.py > reports/tun.md (two minutes).

Each row is a link of its own, made by ``--delay-by tun`` and measured with plain TCP sockets, as ``netsim probe`` does.
"""

from __future__ import annotations

import os
import platform
from statistics import median, quantiles

from netsim_ddp.link.probe.probe import Peers
from netsim_ddp.link.spec import LinkSpec, goodput
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.scenario import available_cores
from netsim_ddp.units import format_rate

MBIT = 10**6
SECONDS, PINGS = 2.0, 21
SHARED = " Others used the cores all the while: the rates are lower bounds; measure them on your own machine."


def spread_ms(samples: list[float]) -> str:
    """``20.2 (20.1..20.9)``: the median, and the 10th and 90th percentile."""
    tenths = quantiles(samples, n=10)
    return f"{median(samples) * 1e3:.2f} ({tenths[0] * 1e3:.2f}..{tenths[-1] * 1e3:.2f})"


def rates() -> None:
    print("| ranks | line | one pair | all at once, slowest | round trip asked, ms | measured, ms |")
    print("|---|---|---|---|---|---|")
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
                shares = " | ".join(f"{got / goodput(rate_bps):.1%}" for got in (alone, together))
                asked = f"{2e3 * delay_s:g} | {spread_ms(trips)}"
                print(f"| {workers} | {format_rate(rate_bps)} | {shares} | {asked} |", flush=True)


def losses() -> None:
    print(
        "| ranks | line | loss asked | packets | lost | rate with neither delay nor loss | largest frame, bytes |"
    )
    print("|---|---|---|---|---|---|---|")
    for workers, rate_bps in ((2, 100 * MBIT), (4, 100 * MBIT), (2, 300 * MBIT), (2, 1000 * MBIT)):
        spec = LinkSpec(workers, rate_bps, delay_s=0.002, loss=0.01, delay_by="tun")
        with TcLink(spec) as link, Peers(link) as peers:
            with link.bare():
                slowest = min(peers.bulk(list(spec.ring()), SECONDS))
            before = link.carried()
            peers.bulk(list(spec.ring()), 2 * SECONDS)
            after = link.carried()
        taken, lost = (sum(b) - sum(a) for a, b in ((before.taken, after.taken), (before.lost, after.lost)))
        share = f"{slowest / goodput(rate_bps):.1%}"
        print(
            f"| {workers} | {format_rate(rate_bps)} | 1% | {taken} | {lost / taken:.2%} | {share} | {after.largest} |",
            flush=True,
        )


def jitters() -> None:
    print("| delay | jitter | order | round trips, ms: median (10th..90th percentile) |")
    print("|---|---|---|---|")
    for reorder in (False, True):
        spec = LinkSpec(2, 100 * MBIT, delay_s=0.01, jitter_s=0.004, reorder=reorder, delay_by="tun")
        with TcLink(spec) as link, Peers(link) as peers:
            trips = peers.pings((0, 1), 150)
        print(f"| 10 ms | 4 ms | {'free' if reorder else 'kept'} | {spread_ms(trips)} |", flush=True)


def main() -> None:
    load = os.getloadavg()[0]
    print("# Real packets delayed in user space: what `--delay-by tun` carries\n")
    print(
        f"Made by `python reports/tun.py` on {available_cores()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}. Rates are TCP goodput as a share of what the line leaves after headers, "
        "by as many connections as fill the line "
        "(reno, whose slow start is not cut short by a busy host's delays); "
        "ranks and forwarder share the cores, so that fewer of them carry less. "
        f"Load average when it began: {load:.1f}.{SHARED if load > available_cores() else ''}\n"
    )
    rates()
    print("\n## Loss\n")
    print("Packets hold one segment each here, which costs the forwarder more.\n")
    losses()
    print("\n## Jitter\n")
    jitters()


if __name__ == "__main__":
    main()
