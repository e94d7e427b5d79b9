"""What the user reads: widths, rows that add up, honest digits and honest sentences."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from netsim_ddp.report.labels import milliseconds, times
from netsim_ddp.report.terminal.result import render_result
from netsim_ddp.report.verdict import verdict
from netsim_ddp.results.identity import groups
from netsim_ddp.results.labels import clean, label
from netsim_ddp.results.record import Cell, Interval, Result
from tests.results_factory import make_cell, make_link, make_result

RATIO = {"ratio": 0.01}


def dense(runs: Sequence[float] = (1548, 1554, 1560), **fields: Any) -> Cell:
    return make_cell("dense", runs, tx=187.4e6, **fields)


def topk(runs: Sequence[float] = (103, 105, 107), **fields: Any) -> Cell:
    defaults: dict[str, Any] = {
        "tx": 2.4e6,
        "residual": 102_000_000,
        "params": RATIO,
        "phases": {"compress": 25.3, "decompress": 4.1},
    }
    return make_cell("topk", runs, **{**defaults, **fields})


def usual(**fields: Any) -> Result:
    overlapped = dense((1485, 1491, 1497), overlap=True)
    half = {"compress": 5, "decompress": 5}
    fp16 = make_cell("fp16", (698, 703, 708), tx=93.7e6, phases=half, overlap=True)
    cells = [dense(), overlapped, fp16, topk(loss=2.3)]
    return make_result([cell.model_copy(update={"execution": "replayed"}) for cell in cells], **fields)


def rendered(result: Result, width: int = 80, **options: Any) -> str:
    stream = io.StringIO()
    render_result(result, Console(file=stream, width=width, **options))
    return stream.getvalue()


def table(text: str) -> tuple[list[str], list[list[str]]]:
    """The last header line and the cells of every row, of the first table in ``text``."""
    lines = text.splitlines()
    title = next(index for index, line in enumerate(lines) if "slowest rank" in line)
    block = lines[title + 1 : lines.index("", title)]
    head = next(index for index, line in enumerate(block) if line.startswith("method"))
    rows = [re.sub(r" \(fastest\)", "", line).split() for line in block[head + 1 :]]
    return block[head].split(), rows


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 200])
def test_every_line_fits_and_no_row_wraps(width: int) -> None:
    text = rendered(usual(warnings=["topk: run 1 ends 12% faster than it starts: raise --warmup"]), width)
    assert max(map(len, text.splitlines())) <= width
    header, rows = table(text)
    assert [row[0] for row in rows] == ["dense", "dense,overlap", "fp16,overlap", "topk"]
    assert {len(row) for row in rows} == {len(header)}
    assert {"step±", "dense"} <= set(header)


def test_80_columns_show_the_table_of_the_design() -> None:
    text = rendered(usual(), 80)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "resnet50 25.6M params | 8 workers | ratio 0.01 | 20 steps x 3 runs | seed 0"
    assert lines[1] == "link tc: asked 1000, got 956 Mbit/s (ceiling 956), 0 drops, 4 retransmits"
    assert " ".join(lines[2:4]) == (
        "REPLAYED: 8 ranks on 2 cores | compute emulated 50 ms | buckets become full as in a real backward pass | "
        "codec on CPU, 2 threads"
    )
    assert lines[5].startswith("ms per step, slowest rank, median of 3 runs")
    assert "1554±6" in text
    assert re.search(r"topk .* 105±2 +48% +2\.40 +6\.7 +14\.8", text)


def test_160_columns_show_everything() -> None:
    text = rendered(usual(), 160)
    for word in ("wait", "hidden", "payload", "ovl", "fewer", "eff", "loss", "here", "opt", "other"):
        assert word in text
    assert "2.3->2.3" in text
    assert "78.1x" in text


@pytest.mark.parametrize("width", [60, 80, 160])
def test_printed_phases_add_up_to_the_printed_step(width: int) -> None:
    header, rows = table(rendered(usual(), width))
    step = header.index("step±")
    for row in rows:
        phases = [float(cell) for cell in row[1:step] if cell != "–"]
        assert sum(phases) == pytest.approx(float(row[step].split("±")[0]), abs=1.5)


def test_nothing_but_text_in_a_pipe() -> None:
    assert "\x1b" not in rendered(usual(), 80)


def test_no_color_and_columns_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    render_result(usual(warnings=["careful"]), Console(file=stream, force_terminal=True))
    text = stream.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text), "no colours"
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 60


def test_an_ascii_pipe_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    render_result(usual(), Console(file=stream, width=80))
    stream.flush()
    assert b"1554+-6" in raw.getvalue()


def test_a_result_from_elsewhere_cannot_reach_the_terminal() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[red]\nx"
    cells = [dense(), topk(id=evil), topk(params={"ratio": 0.01, "k": evil})]
    result = make_result(cells, warnings=[evil], command=evil)
    result.cells[1].error = evil
    result.cells[1].link.congestion = evil
    result.scenario["model"] = evil
    text = rendered(result)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]" in text, "markup is shown, not obeyed"


def test_two_settings_get_two_tables() -> None:
    slow = [dense(bandwidth_bps=10**8), topk(bandwidth_bps=10**8)]
    result = make_result([dense(), topk(), *slow])
    text = rendered(result)
    assert text.count("slowest rank") == 2
    assert "8 workers, 100 Mbit/s" in text
    assert any(line.startswith("8 workers, 1 Gbit/s: topk: 14.8x dense") for line in verdict(result))
    assert [len(cells) for cells in groups(result.cells)] == [2, 2]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (make_link("bucket"), "bytes are charged, not measured"),
        (
            make_link("none", measured_bps=23.1e9),
            "link not shaped: the host's own loopback, 23100 Mbit/s measured",
        ),
        (make_link(congestion="cubic", drops=3), "3 drops, 1 retransmit, cubic"),
        (make_link(requested_bps=16_750_000, measured_bps=16e6), "asked 16.8, got 16 Mbit/s"),
        (make_link(measured_bps=None, ceiling_bps=None), "asked 1000 Mbit/s, 0 drops"),
        (make_link(host_limited=True), "HOST-LIMITED"),
    ],
)
def test_the_link_line(link: Any, expected: str) -> None:
    assert expected in rendered(make_result([dense(link=link)]), 160)


def test_a_cell_that_gives_no_speedup_shows_a_dash() -> None:
    header, rows = table(rendered(make_result([topk()])))
    assert rows[0][-1] == "–"
    assert header[-1] == "dense"


def five(middle: float, spread: float = 0.01) -> list[float]:
    return [middle * (1 + spread * share) for share in (-1, -0.4, 0, 0.6, 1)]


def test_only_a_winner_by_the_rule_is_called_fastest() -> None:
    others = [dense(five(1554)), make_cell("fp16", five(703))]
    assert "topk (fastest)" in rendered(make_result([*others, topk(five(105))]))
    close = make_result([*others, topk(five(105)), topk(five(108), params={"ratio": 0.02})])
    assert "(fastest)" not in rendered(close), "less than 5% from the next"
    assert "(fastest)" not in rendered(make_result([dense(), topk()])), "three repeats"
    assert "(fastest)" not in rendered(make_result([topk(five(105))]))


def test_the_step_header_says_what_the_interval_is() -> None:
    seven = make_result([dense([1554 + shift for shift in range(-3, 4)])])
    assert "step±95%" in rendered(seven)
    assert "range" not in rendered(seven)
    three = rendered(make_result([dense()]))
    assert "± range (a 75% interval)" in three
    one = rendered(make_result([dense([1554])]))
    assert "±" not in one
    assert "median of 1 run" in one


# Digits


def interval(median: float, half: float) -> Interval:
    return Interval(median=median, ci_low=median - half, ci_high=median + half)


@pytest.mark.parametrize(
    ("median_ms", "half_ms", "expected"),
    [
        (1553.7, 6.2, "1554±7"),
        (1553.7, 62, "1550±70"),
        (105.31, 0.4, "105.3±0.5"),
        (105.31, 0.04, "105.31±0.04"),
        (174.9, 29.9, "170±40"),
        (105.31, 1e-9, "105.310±0.001"),
        (105.31, 0, "105"),
        (5.2345, 0, "5.23"),
        (1553.7, 0, "1550"),
        (0, 0, "0"),
    ],
)
def test_a_step_has_the_digits_of_its_interval(median_ms: float, half_ms: float, expected: str) -> None:
    assert milliseconds(interval(median_ms / 1e3, half_ms / 1e3)) == expected


@given(st.floats(min_value=1e-4, max_value=1e3), st.floats(min_value=1e-6, max_value=0.5))
def test_the_printed_interval_is_never_the_narrower_one(median: float, relative: float) -> None:
    half = median * relative
    _, printed = milliseconds(interval(median, half)).split("±")
    assert float(printed) >= half * 1e3 * (1 - 1e-6)


@pytest.mark.parametrize(
    ("value", "relative_errors", "expected"),
    [
        (14.8123, (0.004, 0.019), "14.8x"),
        (14.8123, (0.05, 0.1), "15x"),
        (14.8123, (0.0, 0.0), "15x"),
        (0.7123, (0.02, 0.02), "0.71x"),
        (0.7123, (0.9, 0.9), "0.7x"),
        (78.08, (), "78.1x"),
        (1234.5, (), "1230x"),
        (0.0, (), "–"),
        (float("inf"), (), "–"),
    ],
)
def test_a_ratio_has_the_digits_of_its_intervals(
    value: float, relative_errors: Sequence[float], expected: str
) -> None:
    assert times(value, *(interval(1.0, error) for error in relative_errors)) == expected


def test_labels_tell_cells_apart_and_say_no_more() -> None:
    cells = [dense(), dense(overlap=True), topk(), topk(params={"ratio": 0.001, "values": "fp16"})]
    assert [label(cell, cells) for cell in cells] == [
        "dense",
        "dense,overlap",
        "topk,ratio=0.01",
        "topk,ratio=0.001,values=fp16",
    ]
    assert label(topk(), [dense(), topk()]) == "topk"
    assert clean("a\x1b[0m\nb") == "a [0m b"


# Verdict


def test_a_factor_of_few_repeats_is_no_claim() -> None:
    assert verdict(usual()) == [
        "topk: 6.7x fp16,overlap in these 3 repeats; a claim needs 5 repeats [14.8x dense, 14.2x dense,overlap].",
        "topk: 78.1x fewer bytes than dense, +102 MB/rank residual. Says nothing on accuracy.",
        "Rule: 1 comparison, Holm at 5%, each with fp16,overlap; a claim needs 5 repeats and a difference beyond "
        "5%. Factors in brackets are measured and claim nothing.",
    ]


def test_the_named_rival_is_dense_in_16_bits_overlapped() -> None:
    half = make_cell("fp16", five(698), overlap=True)
    cells = [
        dense(five(1554)),
        dense(five(1491), overlap=True),
        half,
        topk(five(105)),
        topk(five(720), id="slow"),
    ]
    lines = verdict(make_result(cells))
    assert lines[0].startswith("topk is faster than fp16,overlap: 6.6x [14.8x dense, 14.2x dense,overlap].")
    assert lines[1].startswith("topk: within 5% of fp16,overlap") or "no resolvable difference" in lines[1]
    assert "2 comparisons, Holm at 5%, each with fp16,overlap" in lines[-1]


def test_a_larger_family_needs_more_repeats() -> None:
    methods = [topk(five(105 + 10 * n), params={"ratio": 0.01 + n / 100}) for n in range(7)]
    lines = verdict(make_result([dense(five(1554)), *methods]))
    assert "in these 5 repeats; a claim needs 6 repeats" in lines[0]
    assert lines[-1].startswith("Rule: 7 comparisons, Holm at 5%, each with dense; a claim needs 6 repeats")
    slow = [cell.model_copy(update={"bandwidth_bps": 10**8}) for cell in (dense(five(1554)), *methods)]
    both = verdict(make_result([dense(five(1554)), *methods, *slow]))
    assert both[-1].startswith("Rule: 14 comparisons"), "all that one command prints is one family"


def test_charged_bytes_are_called_so() -> None:
    bucket = make_link("bucket")
    assert any(
        "fewer bytes charged" in line
        for line in verdict(make_result([dense(link=bucket), topk(link=bucket)]))
    )


def test_more_bytes_are_not_called_fewer() -> None:
    lines = verdict(make_result([dense(), topk(tx=374.8e6)]))
    assert lines[-2].startswith("topk: 2.00x more bytes than dense")


def test_a_network_that_is_not_the_bottleneck_is_no_reason_to_celebrate() -> None:
    base = dense((99, 100, 101), phases={"compute": 91})
    lines = verdict(make_result([base, topk((93, 94, 95), phases={"compute": 91})]))
    assert lines[0] == (
        "The network is not the bottleneck here: dense spends 8% of its step on the wire;"
        " no method can gain more than 1.09x by sending less."
    )


def test_dense_that_hides_its_communication_is_the_rival_to_beat() -> None:
    base, hidden = dense((199, 200, 201)), dense((99, 100, 101), overlap=True, phases={"compute": 95})
    lines = verdict(make_result([base, hidden, topk()]))
    assert lines[0].startswith("Overlapped with its backward, dense spends only 4% of its step on the wire")
    assert "1.04x" in lines[0]


def test_an_unshaped_link_shows_the_host() -> None:
    free = make_link("none")
    lines = verdict(make_result([dense(link=free), topk(link=free)]))
    assert lines[0] == "The link is not shaped: these figures are this host's, not your network's."


def test_a_loss_says_what_it_costs_and_what_it_saves() -> None:
    base = dense((199, 200, 201))
    phases = {"compress": 100, "decompress": 80, "communicate": 55}
    lines = verdict(make_result([base, topk((284, 286, 288), phases=phases)]))
    why = "78.1x fewer bytes save 94 ms on the wire, but compress + decompress take 180 ms."
    assert lines[0] == f"topk: 0.699x dense in these 3 repeats; a claim needs 5 repeats. {why}"
    lines = verdict(make_result([dense(five(200)), topk(five(286), phases=phases)]))
    assert lines[0] == f"topk is slower than dense: 0.70x. {why}"


def test_a_loss_that_saves_nothing() -> None:
    lines = verdict(make_result([dense((199, 200, 201)), topk((399, 400, 401))]))
    # Fewer bytes are not less time: what else the time went into is computed from rate and delay.
    assert lines[0] == (
        "topk: 0.500x dense in these 3 repeats; a claim needs 5 repeats. It sends 78.1x fewer bytes, yet communicates "
        "170 ms longer: at this rate its bytes take "
        "19 ms; the other 300 ms are not the link's: they are this host's, for starting messages and waiting for the "
        "other ranks; compress + decompress take 29 ms."
    )
    link = make_link(delay_s=0.05, shape="1 Gbit/s; delay 50 ms")
    lines = verdict(make_result([dense((199, 200, 201), link=link), topk((399, 400, 401), link=link)]))
    assert "the other 300 ms are rounds x delay, about 6 rounds of messages x 50 ms" in lines[0]
    more = topk((399, 400, 401), tx=200e6)
    assert (
        "It saves neither bytes nor time on the wire (170 ms more)"
        in verdict(make_result([dense((199, 200, 201)), more]))[0]
    )


def test_a_loss_that_is_neither_codec_nor_wire() -> None:
    slower = topk((299, 300, 301), phases={"compute": 250, "compress": 10})
    assert "the rest of its step takes longer" in verdict(make_result([dense((199, 200, 201)), slower]))[0]


def test_a_difference_within_noise_is_none() -> None:
    lines = verdict(make_result([dense(five(200, 0.05)), topk(five(195, 0.05))]))
    assert lines[0] == "topk: no resolvable difference from dense (1.0x, 195±10 against 200±10 ms)."
    same = verdict(make_result([dense(five(200)), topk(five(202))]))
    assert same[0].startswith("topk: within 5% of dense (95% interval 0.9")


def test_single_runs_admit_that_they_have_no_error_bars() -> None:
    lines = verdict(make_result([dense([1554]), topk([105])], scenario={"repeats": 1}))
    assert lines[0] == "topk: 15x dense in this one repeat; a claim needs 5 repeats."
    assert lines[-1] == "One run each: no error bars. --repeats 6 gives a 95% interval."


def test_with_a_host_limited_baseline_a_speedup_is_a_bound_and_no_claim() -> None:
    limited = make_link(host_limited=True)
    result = make_result([dense(five(1554), link=limited), topk(five(105))])
    lines = verdict(result)
    assert lines[0].startswith("Host-limited: dense: there the host, not the link, sets the pace")
    assert lines[1].startswith("topk: <=14.8x dense, a bound since dense is host-limited, and no claim")
    _, rows = table(rendered(result))
    assert rows[0][:2] == ["dense", "(host-limited)"]
    assert rows[1][-1] == "<=14.8"


def test_a_limited_method_may_still_be_called_faster_and_never_slower() -> None:
    limited = make_link(host_limited=True)
    faster = verdict(make_result([dense(five(1554)), topk(five(105), link=limited)]))
    assert "topk is faster than dense: >=14.8x." in faster
    slower = verdict(make_result([dense(five(105)), topk(five(1554), link=limited)]))
    assert "topk: >=0.068x dense, a bound since topk is host-limited, and no claim." in slower


def test_with_both_limited_there_is_no_number() -> None:
    limited = make_link(host_limited=True)
    result = make_result([dense(five(1554), link=limited), topk(five(105), link=limited)])
    lines = verdict(result)
    assert "topk: no speedup over dense: both are host-limited." in lines
    assert not any(re.search(r"\dx dense", line) for line in lines)
    _, rows = table(rendered(result))
    assert [row[-1] for row in rows] == ["–", "–"]


def test_a_probe_that_fell_short_says_what_the_host_carries() -> None:
    short = make_link(together_bps=500e6, ceiling_bps=956e6)
    lines = verdict(make_result([dense(link=short), topk(link=short)]))
    assert "with all ranks sending at once this host carries 500 Mbit/s of 956 Mbit/s" in lines[0]
    assert "all ranks at once get 500" in rendered(make_result([dense(link=short)]), 160)


def test_without_dense_there_is_nothing_to_compare_with() -> None:
    assert verdict(make_result([topk()])) == ["No speedup is given: no dense baseline ran here."]


def test_dense_alone_says_what_the_wire_costs() -> None:
    assert verdict(make_result([dense()])) == ["dense spends 97% of its step on the wire."]


def test_missing_cells_and_runs_are_named_with_their_reason() -> None:
    failed = make_cell("topk", [], error="rank 3: ValueError: no such thing.\nTraceback ...")
    never = make_cell("fp16", [])
    cut = topk((103, 105), id="topk,ratio=0.1", error="timed out")
    result = make_result([dense(), failed, never, cut], status="partial")
    assert verdict(result)[-3:] == [
        "Missing: topk: rank 3: ValueError: no such thing.",
        "Missing: fp16: not run.",
        "Partial: topk,ratio=0.1 has 2 of 3 runs: timed out.",
    ]
    assert "Missing: fp16" in rendered(result)


def test_a_partial_result_without_a_named_gap_still_says_so() -> None:
    assert (
        verdict(make_result([dense()], status="failed"))[-1] == "The result is failed: 1 cell was measured."
    )


def test_a_result_without_cells_renders() -> None:
    text = rendered(make_result([], status="failed"))
    assert "resnet50" in text
    assert "0 cells were measured" in text


def test_a_result_without_any_measured_cell_renders_no_table() -> None:
    text = rendered(make_result([make_cell("topk", [], error="boom")], status="failed"))
    assert "slowest rank" not in text
    assert "Missing: topk: boom." in text
