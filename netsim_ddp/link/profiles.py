"""Named links, each with where its numbers come from, and links that a user keeps in a file."""

from __future__ import annotations

import os
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


_ETHERNET = (
    "IEEE 802.3; no delay is added, since a tc link's own round trip is about the 0.1 ms of one switch"
)
_REGIONS = "public round trips between AWS regions; the rate is an assumption: measure yours"

PROFILES: Mapping[str, Profile] = {
    "lan-100m": Profile({"bandwidth": "100mbps"}, "100 Mbit/s Ethernet", _ETHERNET),
    "lan-1g": Profile({"bandwidth": "1gbps"}, "1 Gbit/s Ethernet", _ETHERNET),
    "lan-10g": Profile({"bandwidth": "10gbps"}, "10 Gbit/s Ethernet", _ETHERNET),
    "wifi": Profile(
        {"bandwidth": "30mbps", "delay": "20ms", "loss": "0.2%"},
        "a good wireless network, 40 ms round trip",
        "Comcast (github.com/tylertreat/comcast), WIFI (good): 30 Mbit/s, 40 ms, 0.2%",
    ),
    "dsl": Profile(
        {"bandwidth": "8mbps", "delay": "20ms"},
        "a good home line, 40 ms round trip",
        "Comcast (github.com/tylertreat/comcast), DSL (good): 8 Mbit/s, 40 ms; its 0.5% loss is left out",
    ),
    "lte": Profile(
        {"bandwidth": "5.96mbps:5.04mbps", "delay": "20ms"},
        "a cellular link at its mean rates",
        "means of an LTE trace pair of mahimahi (github.com/ravinet/mahimahi/traces; --trace plays one); "
        "the delay is an assumption",
    ),
    "inter-az": Profile(
        {"bandwidth": "5gbps", "delay": "0.5ms"},
        "one flow between two zones of a region",
        "AWS, EC2 instance network bandwidth: 5 Gbit/s for a flow; round trips between zones are 0.25 to 3.4 ms",
    ),
    "wan-us-eu": Profile(
        {"bandwidth": "1gbps", "delay": "40ms"}, "us-east to eu-west, 80 ms round trip", _REGIONS
    ),
    "wan-us-asia": Profile(
        {"bandwidth": "1gbps", "delay": "72.5ms"}, "us-east to tokyo, 145 ms round trip", _REGIONS
    ),
    "ec2-burst": Profile(
        {"bandwidth": "1.25gbps", "peak": "10gbps", "credit": "4GB"},
        "c5.xlarge: a peak on credit, then the baseline",
        "AWS: baseline 1.25, burst 10 Gbit/s for 5 to 60 minutes; 4 GB of credit is far less, for a run to spend",
    ),
}

KEYS = ("bandwidth", "slow_rank", "delay", "jitter", "loss", "queue", "congestion",
        "timeline", "trace", "peak", "credit", "delay_by", "reorder", "tcp")  # fmt: skip
_WORDS = ("name", "about", "source")


def profile(name: str) -> Mapping[str, Any]:
    """The values of a named profile, or of a YAML file: flags as keys, beside ``name``, ``about`` and ``source``.

    Raises:
        UsageError: no such profile and no such file, or a file with other keys.
    """
    if name in PROFILES:
        return PROFILES[name].values
    path = Path(name)
    if (
        not os.path.exists(name)
        and path.suffix.lower() not in (".yaml", ".yml", ".json")
        and path.name == name
    ):
        raise UsageError(f"link profile {name!r} is not known", hint=suggest(name, PROFILES))
    hint = "write keys such as 'bandwidth: 1gbps', one on a line"
    data = read_yaml(path, "link profile", hint)
    if not isinstance(data, dict) or not data:
        raise UsageError(f"link profile {path} holds no link", hint=hint)
    for key in data:
        if key not in KEYS and key not in _WORDS:
            raise UsageError(f"link profile {path}: unknown key {str(key)!r}", hint=suggest(str(key), KEYS))
    return {key: value for key, value in data.items() if key not in _WORDS}
