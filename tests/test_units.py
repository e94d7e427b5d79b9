"""What people write for rates, durations, sizes and ratios: accepted, or refused with what to type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.errors import UsageError
from netsim_ddp.units import (
    counted,
    format_bytes,
    format_duration,
    format_rate,
    parse_duration,
    parse_rate,
    parse_ratio,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1gbps", 10**9),
        ("1gbit", 10**9),
        ("1Gbit/s", 10**9),
        ("1Gbits/s", 10**9),
        ("1GBIT", 10**9),
        ("1Gb/s", 10**9),
        ("1 gbps", 10**9),
        (" 1gbps ", 10**9),
        ("1e3mbps", 10**9),
        ("100mbps", 10**8),
        ("2.5gbps", 2_500_000_000),
        (".5gbps", 500_000_000),
        ("64kbit", 64_000),
        ("9600bps", 9600),
        ("1tbps", 10**12),
        ("125MB/s", 10**9),
        ("1GB/s", 8 * 10**9),
        ("8B/s", 64),
    ],
)
def test_rates(text: str, bits: int) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1GBps", "1gbps for bits or 1GB/s for bytes"),
        ("125MBps", "125mbps for bits or 125MB/s for bytes"),
        ("1000", "1000mbps or 1000gbps"),
        ("1", "1mbps"),
        ("0", "for example"),
        ("0gbps", "for example"),
        ("-1gbps", "for example"),
        ("1e99gbps", "for example"),
        ("0.0001bps", "for example"),
        ("", "for example"),
        ("fast", "for example"),
        ("1gib", "for example"),
        ("1gbps fast", "for example"),
        ("nan", "for example"),
        ("nangbps", "for example"),
        ("infgbps", "for example"),
        ("1,5gbps", "for example"),
        ("1/s", "for example"),
    ],
)
def test_rates_refused(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate(text, what="bandwidth")
    assert caught.value.exit_code == 2
    assert repr(text) in caught.value.message
    assert hint in str(caught.value.hint)
    assert "\n" not in caught.value.message


@given(st.integers(min_value=1, max_value=999_999), st.sampled_from(["k", "m", "g"]))
def test_a_rate_means_the_same_in_every_spelling(number: int, prefix: str) -> None:
    spellings = [
        f"{number}{prefix}bps",
        f"{number}{prefix.upper()}bit",
        f"{number} {prefix}bit/s",
        f"{number}{prefix}BIT",
        f"{number / 8!r}{prefix}B/s",
    ]
    assert len({parse_rate(text) for text in spellings}) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("1.5s", 1.5),
        ("250us", 250e-6),
        ("250µs", 250e-6),
        ("10min", 600.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("0", 0.0),
        ("0ms", 0.0),
        ("50 MS", 0.05),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("50", "50ms or 50s"), ("-5ms", "50ms"), ("soon", "50ms"), ("", "50ms"), ("1e999s", "50ms")],
)
def test_durations_refused(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="duration") as caught:
        parse_duration(text)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4MB", 4_000_000), ("64KiB", 65_536), ("100kB", 100_000), ("1.5GB", 1_500_000_000), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["4Mb", "4", "-1MB", "", "many", "1XB"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("0.01", 0.01), ("1%", 0.01), (" 0.1 % ", 0.001), (0.5, 0.5), ("1", 1.0), ("1e-3", 0.001)],
)
def test_ratios(text: str | float, ratio: float) -> None:
    assert parse_ratio(text) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5", "5%"),
        ("100x", "0.01"),
        ("0", "0.01 or 1%"),
        ("-0.1", "0.01 or 1%"),
        ("101%", "0.01 or 1%"),
        ("nan", "0.01 or 1%"),
        ("inf", "0.01 or 1%"),
        ("few", "0.01 or 1%"),
    ],
)
def test_ratios_refused(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="ratio") as caught:
        parse_ratio(text)
    assert hint in str(caught.value.hint)


def test_formats() -> None:
    assert [format_rate(rate) for rate in (10**9, 956_400_000, 64_000, 12)] == [
        "1 Gbit/s",
        "956.4 Mbit/s",
        "64 kbit/s",
        "12 bit/s",
    ]
    assert [format_bytes(count) for count in (187.4e6, 2_400, 12, -3e6)] == [
        "187.4 MB",
        "2.4 kB",
        "12 B",
        "-3 MB",
    ]
    assert [format_duration(s) for s in (600, 1.5, 0.0123, 42e-6)] == ["10 min", "1.5 s", "12.3 ms", "42 us"]


@given(st.integers(min_value=1, max_value=10**13))
def test_a_printed_rate_reads_back(bits: int) -> None:
    assert parse_rate(format_rate(bits)) == pytest.approx(bits, rel=1e-3)


def test_one_is_no_plural() -> None:
    assert [counted(number, "step") for number in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert (counted([1], "rank"), counted([1, 2], "rank")) == ("1 rank", "1, 2 ranks")
    assert (counted(1, "batch", "batches"), counted(3, "batch", "batches")) == ("1 batch", "3 batches")
