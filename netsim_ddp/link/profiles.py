"""Named links, each with where its numbers come from, and links that a user keeps in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.link.timeline import read_yaml
from netsim_ddp.names import suggest


@dataclass(frozen=True)
class Profile:
    """A link in the words of the command line's flags, and the source of its numbers."""

    values: Mapping[str, str]
    about: str
    source: str


_CLASSIC = "textbook Ethernet; a round trip of 0.1 ms is what one switch and two hosts take"
_CELLULAR = "mean of the mahimahi traces Verizon-LTE-short.up/.down; delay as in the mahimahi papers"

PROFILES: Mapping[str, Profile] = {
    "lan-100m": Profile({"bandwidth": "100mbps", "delay": "50us"}, "100 Mbit/s Ethernet", _CLASSIC),
    "lan-1g": Profile({"bandwidth": "1gbps", "delay": "50us"}, "1 Gbit/s Ethernet", _CLASSIC),
    "lan-10g": Profile({"bandwidth": "10gbps", "delay": "50us"}, "10 Gbit/s Ethernet", _CLASSIC),
    "wifi": Profile(
        {"bandwidth": "30mbps", "delay": "20ms", "loss": "0.2%"},
        "a home's wireless, 40 ms round trip",
        "the WiFi preset of common network link conditioners: 30 Mbit/s, 40 ms, 0.2% loss",
    ),
    "dsl": Profile(
        {"bandwidth": "1mbps:8mbps", "delay": "20ms"},
        "an asymmetric home line, 40 ms round trip",
        "ADSL (ITU-T G.992.1): up to 8 Mbit/s down and 1 Mbit/s up; 40 ms as DSL presets have it",
    ),
    "lte": Profile(
        {"bandwidth": "5.96mbps:5.04mbps", "delay": "20ms"}, "a cellular link's mean rates", _CELLULAR
    ),
    "inter-az": Profile(
        {"bandwidth": "5gbps", "delay": "0.5ms"},
        "one flow between two zones of a region",
        "AWS: 5 Gbit/s for a flow outside a placement group; round trips between zones measure 0.25 to 3.4 ms",
    ),
    "wan-us-eu": Profile(
        {"bandwidth": "1gbps", "delay": "40ms"},
        "us-east to eu-west",
        "public measurements of AWS region pairs: 80 ms round trip; 1 Gbit/s is an assumption, yours may differ",
    ),
    "wan-us-asia": Profile(
        {"bandwidth": "1gbps", "delay": "72.5ms"},
        "us-east to tokyo",
        "public measurements of AWS region pairs: 145 ms round trip; 1 Gbit/s is an assumption, yours may differ",
    ),
    "ec2-burst": Profile(
        {"bandwidth": "1.25gbps", "peak": "10gbps", "credit": "4GB"},
        "c5.xlarge: a peak on credit, then the baseline",
        "AWS: c5.xlarge has a baseline of 1.25 and a peak of 10 Gbit/s; the size of the credit is not published",
    ),
}

KEYS = ("bandwidth", "slow_rank", "delay", "jitter", "loss", "queue", "congestion",
        "timeline", "trace", "peak", "credit")  # fmt: skip
_WORDS = ("name", "about", "source")


def profile(name: str) -> Mapping[str, Any]:
    """The values of a named profile, or of a YAML file: flags as keys, beside ``name``, ``about`` and ``source``.

    Raises:
        UsageError: no such profile and no such file, or a file with other keys.
    """
    if name in PROFILES:
        return PROFILES[name].values
    path = Path(name)
    if not path.exists() and path.suffix.lower() not in (".yaml", ".yml", ".json") and path.name == name:
        raise UsageError(f"link profile {name!r} is not known", hint=suggest(name, PROFILES))
    data = read_yaml(path, "link profile")
    hint = "write keys such as 'bandwidth: 1gbps', one on a line"
    if not isinstance(data, dict) or not data:
        raise UsageError(f"link profile {path} holds no link", hint=hint)
    for key in data:
        if key not in KEYS and key not in _WORDS:
            raise UsageError(f"link profile {path}: unknown key {str(key)!r}", hint=suggest(str(key), KEYS))
    return {key: value for key, value in data.items() if key not in _WORDS}
