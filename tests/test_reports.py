"""Every exporter: what it says, and what hostile, partial and old files do to it (nothing)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from netsim_ddp.report import facts
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.export import ci, citations, figures, html, junit, latex, markdown, tidy
from netsim_ddp.results.files import load
from netsim_ddp.results.record import Cell, CodeRecord, Result
from tests.results_factory import make, make_cell, make_result, sweep, training

HEADLINE = Path(__file__).parent.parent / "reports" / "headline-resnet50.json"
EXPORTERS: dict[str, Callable[[Collection], str]] = {
    "html": html.page,
    "markdown": markdown.document,
    "csv": tidy.table,
    "junit": junit.document,
    "latex": latex.document,
    "bibtex": citations.bibliography,
    "github": ci.github_benchmark,
    "bencher": ci.bencher,
}
EVIL = (
    "</td></details><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&${\\input{/etc/passwd}}"
    "`|*_@you http://x.example\x1b[2J\x00"
)
FORMULA = "=HYPERLINK(1)"


def collection(*results: Result) -> Collection:
    return Collection([Source(f"file{number}.json", result) for number, result in enumerate(results)])


@pytest.fixture(scope="module")
def swept() -> Collection:
    return collection(sweep(bandwidths=(10**8, 10**10)))


def hostile(word: str) -> Collection:
    """``word`` wherever a file has text."""
    cells = []
    for cell in sweep(bandwidths=(10**8, 10**10), workers=(2, 4), methods=3, repeats=2).cells:
        link = cell.link.model_copy(update={"shape": word, "congestion": word})
        text = {
            "id": f"{cell.id} {word}", "method": cell.method if cell.method == "dense" else word,
            "params": {word: word}, "model": word, "dataset": word, "axes": {word: word}, "device": word,
            "backend": word, "substituted": word, "link": link,
        }  # fmt: skip
        cells.append(cell.model_copy(update=text))
    cells.append(cells[0].model_copy(update={"id": word, "error": word, "summary": None, "repeats": []}))
    result = make(
        cells, warnings=[word], command=word, created_utc=word, environment={word: word},
        scenario={"model": word, "repeats": 2}, status="partial",
    )  # fmt: skip
    learned = training(seeds=(0, 1), epochs=2)
    learned = learned.model_copy(
        update={"cells": [c.model_copy(update={"params": {word: c.method}}) for c in learned.cells]}
    )
    return Collection([Source(word, result), Source(word, learned)])


class Structure(HTMLParser):
    """A page's tags with their attributes' names, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag, tuple(sorted(name for name, _ in attrs))] += 1

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# Hostile input


def test_a_page_has_the_same_tags_whatever_stands_in_the_file() -> None:
    page = html.page(hostile(EVIL))
    assert Structure(page).tags == Structure(html.page(hostile("word"))).tags
    assert "<script>alert(1)</script>" in "".join(Structure(page).text), "shown as text"
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\x00" not in page


def test_a_page_fetches_nothing() -> None:
    page = html.page(hostile(EVIL))
    assert html.POLICY.startswith("default-src 'none'")
    assert f'content="{html.POLICY.replace(chr(39), "&#x27;")}"' in page
    attributes = {name for _, names in Structure(page).tags for name in names}
    assert not {name for name in attributes if name.startswith("on")}
    assert not attributes & {"src", "srcset", "xlink:href", "action", "formaction"}
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"], "the icon that is none"
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {
        f"#hatch-{name}" for name in ("up", "down", "across", "upright", "dots")
    }


def test_markdown_keeps_hostile_text_inert() -> None:
    text = markdown.document(hostile(EVIL))
    outside = re.sub(r"(?ms)^(`{3,})$.*?^\1$", "", text)
    prose = re.sub(r"<summary>.*?</summary>", "", outside)  # HTML, where signs of Markdown mean nothing
    assert "`" not in prose.replace("\\`", "")
    assert not re.search(r"(?<!\\)[*|_]", re.sub(r"(?m)^\|.*\|$", "", prose).replace("**", ""))
    tags = re.findall(r"<[^>]*>", outside)
    assert set(tags) == {"<details>", "</details>", "<summary>", "</summary>", "<!-- -->"}
    assert tags.count("<details>") == tags.count("</details>")
    assert "@you" not in outside, "nobody is called"
    assert "http://" not in outside, "nor linked to"


def test_latex_obeys_no_file() -> None:
    commands = set(re.findall(r"\\([a-zA-Z]+)", latex.document(hostile(EVIL))))
    assert commands <= {
        "usepackage", "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "pm", "times",
        *re.findall(r"text[a-z]+", " ".join(commands)),
    }  # fmt: skip
    assert latex.text("50% of a_b & $x^2$ {\\evil} ±–é☃") == (
        r"50\% of a\_b \& \$x\textasciicircum{}2\$ \{\textbackslash{}evil\} $\pm$--é?"
    )


def test_junit_is_wellformed_whatever_stands_in_it() -> None:
    root = ElementTree.fromstring(junit.document(hostile(EVIL)))
    plain = ElementTree.fromstring(junit.document(hostile("word")))
    assert [each.tag for each in root.iter()] == [each.tag for each in plain.iter()]


@pytest.mark.parametrize("word", [EVIL, FORMULA, "+1", "-1", "@SUM(1)", "\t=1"])
def test_a_spreadsheet_computes_nothing(word: str) -> None:
    rows = list(csv.DictReader(io.StringIO(tidy.table(hostile(word)))))
    for row in rows:
        for name in (*tidy.WHERE, "link_congestion"):
            assert not re.match(r"[=+@-]", row[name]), f"{name}: {row[name]}"
    assert len({len(row) for row in rows}) == 1


def test_hostile_names_in_figures(tmp_path: Path) -> None:
    written = figures.write(hostile(EVIL), tmp_path / "made", ["svg"])
    assert {path.parent for path in written} == {tmp_path / "made"}
    assert all(re.fullmatch(r"[a-z-]+(-\d+)?\.svg", path.name) for path in written), "no name is the file's"
    tags = {each.tag.rpartition("}")[2] for path in written for each in ElementTree.parse(path).iter()}
    assert tags <= {
        "svg", "title", "desc", "style", "rect", "defs", "pattern", "path", "g", "text", "line", "circle",
    }  # fmt: skip


def test_services_get_json() -> None:
    for build in (ci.github_benchmark, ci.bencher):
        assert json.loads(build(hostile(EVIL)))


# Whole, partial, failed and old files


@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize(
    "kind", ["empty", "failed", "partial", "version 1", "training", "diverged", "several"]
)
def test_every_file_gives_every_report(name: str, kind: str) -> None:
    failed = make_cell("topk", [], error="rank 3: ValueError: no such thing.\nTraceback ...")
    results: dict[str, Callable[[], list[Result]]] = {
        "empty": lambda: [make([], status="failed")],
        "failed": lambda: [make_result([failed], status="failed")],
        "partial": lambda: [
            make_result([make_cell("dense", [100, 101]), failed, make_cell("fp16", [])], status="partial")
        ],
        "version 1": lambda: [load(HEADLINE)],
        "training": lambda: [training()],
        "diverged": lambda: [training(diverged=True, accuracy=False)],
        "several": lambda: [load(HEADLINE), sweep(workers=(2,)), training(seeds=(0,))],
    }
    text = EXPORTERS[name](collection(*results[kind]()))
    assert text.endswith("\n")
    if kind in ("failed", "partial") and name in ("html", "markdown", "csv", "junit"):
        assert "no such thing" in text, "what is missing is said, and why"
    if name == "csv":
        assert next(csv.reader(io.StringIO(text))) == list(tidy.COLUMNS)
    if name in ("github", "bencher"):
        json.loads(text)


def test_a_result_of_version_1_gets_its_scenarios_model() -> None:
    assert {entry.cell.model for entry in collection(load(HEADLINE)).entries} == {"resnet50"}


def test_samples_without_summaries_are_summarised() -> None:
    bare = make_result([make_cell("dense", [100, 101]), make_cell("topk", [10, 11])])
    bare = bare.model_copy(
        update={"cells": [cell.model_copy(update={"summary": None}) for cell in bare.cells]}
    )
    _, topk = collection(bare).entries
    assert topk.cell.summary is not None
    assert topk.cell.summary.speedup == pytest.approx(100.5 / 10.5)


def test_cells_of_two_files_links_or_executions_never_share_a_block() -> None:
    one, other = sweep(workers=(2,), methods=2), sweep(workers=(2,), methods=2, seed=1)
    mixed = [cell.model_copy(update={"execution": "concurrent"}) for cell in one.cells]
    both = collection(make([*one.cells, *mixed]), other)
    assert len(both.blocks) == 3 * 2 + 3
    for block in both.blocks:
        assert (
            len(
                {
                    (entry.source.name, entry.cell.execution, entry.cell.bandwidth_bps)
                    for entry in block.entries
                }
            )
            == 1
        )
    assert len({block.title for block in both.blocks}) == len(both.blocks), "and their titles tell them apart"


# Contents


def test_the_page_says_what_the_data_says(swept: Collection) -> None:
    page = html.page(swept)
    text = "".join(Structure(page).text)
    for words in (
        "than overlapped dense", "speedup over overlapped dense", "MB sent per rank", "retransmits", "cubic",
        "netsim sweep synthetic.yaml", "none: synthetic",
    ):  # fmt: skip
        assert words in text
    assert len(re.findall(r'<svg class="plot"', page)) == 2 * (2 + 1) + 2 * 2 + 4 + 1
    assert len(re.findall(r'role="img" aria-label="[^"]{20,}"', page)) == page.count("<svg class"), (
        "each in words"
    )
    assert page.count('<th scope="row"') > len(swept.entries), "every cell is a row of a table"


def test_a_page_of_200_cells_is_below_1_mb() -> None:
    rates = tuple(round(10**7 * 10 ** (step / 2)) for step in range(5))
    large = collection(sweep(bandwidths=rates, workers=(2, 3, 4, 6, 8), repeats=2, steps=2))
    assert len(large.entries) == 200
    assert len(html.page(large).encode()) < 1_000_000
    assert len(markdown.document(large).encode()) < 1_000_000


def test_markdown_stays_below_its_limit_and_says_so(swept: Collection) -> None:
    short = markdown.document(swept, limit=6_000)
    assert len(short.encode()) <= 6_000
    assert re.search(r"_\d+ more parts did not fit", short)
    assert short.count("<details>") == short.count("</details>")


def test_every_raw_sample_is_a_row() -> None:
    result = sweep(bandwidths=(10**8,), workers=(4,), repeats=2, steps=3)
    learned = training()
    rows = list(csv.DictReader(io.StringIO(tidy.table(collection(result, learned)))))
    kinds = Counter(row["row"] for row in rows)
    assert kinds == {"cell": 8 + 2, "step": 8 * 2 * 4 * 3, "rank": 8 * 2 * 4 + 2 * 3 * 4, "epoch": 2 * 3 * 5}
    first = next(row for row in rows if row["row"] == "step")
    sample = result.cells[0].repeats[0].ranks[0].steps[0]
    assert float(first["wall_s"]) == sample.wall_s, "in full"
    assert (first["overlap"], first["workers"], first["repeat"], first["rank"]) == ("false", "4", "0", "0")
    assert sum(float(row["tx_bytes"]) for row in rows if row["row"] == "epoch") == sum(
        epoch.tx_bytes for cell in learned.cells for repeat in cell.repeats for epoch in repeat.epochs
    )


def test_junit_tells_failed_from_missing() -> None:
    cells = [
        make_cell("dense", [100]),
        make_cell("topk", [], error="rank 1: boom\nmore"),
        make_cell("fp16", []),
    ]
    root = ElementTree.fromstring(junit.document(collection(make_result(cells, status="partial"))))
    assert {key: root.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("message") == "rank 1: boom"
    assert failure.text == "rank 1: boom\nmore"


def test_benchmark_names_identify_cells_and_stay(swept: Collection) -> None:
    rows = json.loads(ci.github_benchmark(swept))
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == 2 * len(swept.entries)
    assert names[0] == "simple_cnn, 2 workers, 100 Mbit/s, tc, replayed: dense: step"
    assert {"name", "unit", "value", "extra"} <= set(rows[0])
    assert rows[0]["range"].startswith("± ")
    twice = json.loads(ci.github_benchmark(collection(swept.sources[0].result, swept.sources[0].result)))
    assert len({row["name"] for row in twice}) == 2 * len(names), "two files keep apart"
    alone = collection(make(swept.sources[0].result.cells[:1]))
    assert json.loads(ci.github_benchmark(alone))[0]["name"] == names[0], "whatever else ran"


def test_bencher_counts_in_nanoseconds() -> None:
    (measures,) = json.loads(
        ci.bencher(collection(make_result([make_cell("dense", [99, 100, 102], tx=5e6)])))
    ).values()
    assert measures["latency"] == pytest.approx({"value": 100e6, "lower_value": 99e6, "upper_value": 102e6})
    assert measures["wire-bytes"] == {"value": 5e6}


@pytest.mark.parametrize(
    ("cell", "keys"),
    [
        (make_cell("dense", [1]), {"patarasuk2009bandwidth"}),
        (make_cell("powersgd", [1], params={"rank": 2}), {"vogels2019powersgd", "karimireddy2019error"}),
        (
            make_cell("topk", [1], params={"collective": "allgather", "feedback": False}),
            {"stich2018sparsified"},
        ),
        (
            make_cell("topk", [1], params={"momentum": 0.9, "values": "int8-stochastic", "selector": "fitted",
                                           "collective": "allgather+split"}),
            {"stich2018sparsified", "karimireddy2019error", "tang2019doublesqueeze", "shi2019distributed",
             "lin2018deep", "alistarh2017qsgd", "abdelmoniem2021efficient"},
        ),
        # Which collective ran is what the cell says, and not what might have been likely.
        (make_cell("topk", [1], params={"collective": "allgather"}), {"stich2018sparsified", "karimireddy2019error"}),
        (make_cell("topk", [1]), {"stich2018sparsified", "karimireddy2019error"}),
        (make_cell("mine:Mine", [1]), set()),
    ],
)  # fmt: skip
def test_whom_to_cite(cell: Cell, keys: set[str]) -> None:
    text = citations.bibliography(collection(make_result([cell])))
    assert set(re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)) == keys | {"netsim"}
    assert text.count("{") == text.count("}")


def test_adam_with_compression_is_1_bit_adams() -> None:
    trained = training()
    scenario: dict[str, Any] = {**trained.scenario, "optimizer": "adamw"}
    text = citations.bibliography(collection(trained.model_copy(update={"scenario": scenario})))
    assert "tang2021onebit" in text


def test_the_page_says_of_what_code_it_is() -> None:
    code = [
        CodeRecord(name="netsim", version="0.2", commit=None),
        CodeRecord(name="gradients", version=None, commit="0123456789abcdef", dirty=True),
    ]
    made = collection(make_result([make_cell("dense", [1])], code=code))
    rows = dict(facts.environment(made.sources[0]).rows)
    assert rows["code of netsim"] == "0.2"
    assert rows["code of gradients"] == "commit 0123456789ab and changes that are not committed"
    assert "0123456789ab and changes" in markdown.document(made)
