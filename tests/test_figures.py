"""Every published figure is in a result file: tables are what commands print, and prose says only what tables do."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.results import prediction_errors, repeatability

ROOT = Path(__file__).parent.parent
REPORTS = ROOT / "reports"
SETTINGS = Path(__file__).parent / "fixtures" / "settings.txt"
UNIT = r"(?:ms|µs|us|%|x|points?|[kMGT]?bit/s|[kMG]B|GiB|MiB|s|minutes?|seconds?|hours?)"
FIGURE = re.compile(rf"(?<![\w.=/-])([+-]?\d[\d,]*(?:\.\d+)?)\s?({UNIT})(?![\w/])")
LINKED = re.compile(r"\]\((?:\.\./)?(?:reports/)?([\w-]+\.md)[)#]")
LARGEST_FOLDER = 10 * 10**6  # bytes


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(REPORTS / name))


PAGES: list[Path] = script("pages.py")["PAGES"]
WRITTEN = [path for path in PAGES if path.parent == REPORTS and path.name != "README.md"]
BY_HAND = [
    path for path in PAGES if path.parent != REPORTS or (path in WRITTEN and "<!-- " in path.read_text())
]
"""The other pages are written by the script that measures."""


def bare(text: str) -> str:
    """Prose, and tables that nobody fills, without code and comments."""
    text = re.sub(
        r"^```.*?^```|^<!-- python [^\n]*-->\n(?:\|[^\n]*\n)+", "", text, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"`[^`]*`|<!--.*?-->", "", text, flags=re.DOTALL)


def tables(text: str) -> str:
    """The blocks and tables that a command fills."""
    found = [each["text"] for kind in ("BLOCK", "TABLE") for each in script("pages.py")[kind].finditer(text)]
    return "\n".join(found)


def numbers(text: str) -> set[str]:
    return {word.replace(",", "").lstrip("+-") for word in re.findall(r"[+-]?\d[\d,]*(?:\.\d+)?", text)}


def settings(page: str) -> set[str]:
    """What the fixture says of a page: figures that are chosen and not measured."""
    rows = [line.split("|") for line in SETTINGS.read_text().splitlines() if not line.startswith("#")]
    return {row[1].strip() for row in rows if row[0].strip() in (page, "*")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_table_of_a_command_is_what_it_prints_now(path: Path) -> None:
    text = path.read_text()
    assert script("pages.py")["filled"](text) == text, "python reports/figures.py --tables"


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_figure_stands_in_prose_that_no_file_gives(path: Path) -> None:
    text, page = path.read_text(), str(path.relative_to(ROOT))
    chosen, unknown = settings(page), []
    filled = numbers(tables(text))
    for paragraph in re.split(r"\n(?:\s*\n|(?=\|))", bare(text)):
        given = set(filled)
        for name in LINKED.findall(paragraph):
            if (REPORTS / name).exists():
                given |= numbers((REPORTS / name).read_text())
        for number, unit in FIGURE.findall(paragraph):
            figure = f"{number} {unit}"
            if figure.lstrip("+-") not in chosen and number.replace(",", "").lstrip("+-") not in given:
                unknown.append(figure)
    assert not unknown, "link the report that has it, or list it in tests/fixtures/settings.txt as a setting"


def test_no_result_file_names_a_folder_of_the_machine_that_made_it() -> None:
    for path in REPORTS.glob("*.json"):
        command = json.loads(path.read_text()).get("command", "")
        assert not re.search(r"(?:^|\s)/", command), path.name


def test_the_settings_are_all_needed() -> None:
    for line in SETTINGS.read_text().splitlines():
        if not line.startswith("#") and line.strip():
            page, figure, _ = (part.strip() for part in line.split("|"))
            pages = PAGES if page == "*" else [ROOT / page]
            said = {
                f"{a} {b}".lstrip("+-") for each in pages for a, b in FIGURE.findall(bare(each.read_text()))
            }
            assert figure in said, line


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_a_page_asks_answers_and_says_how_to_repeat_and_what_it_does_not_show(path: Path) -> None:
    text = path.read_text()
    places = [text.find(part) for part in script("form.py")["PARTS"]]
    assert -1 not in places
    assert places == sorted(places)
    answer = text[places[1] :].split("\n\n")[0]
    sentences = re.findall(r"[.?](?=\s|$)", answer.partition("**Answer.** ")[2])
    assert 1 <= len(sentences) <= 3


def test_the_folder_is_small_and_every_note_is_of_a_figure() -> None:
    kept = [path for path in REPORTS.glob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < LARGEST_FOLDER
    found = script("figures.py")
    noted = set(json.loads((REPORTS / "figures.json").read_text()))
    assert noted <= set(found["FIGURES"])
    assert all((REPORTS / found["FIGURES"][name].page).exists() for name in noted)


def test_intervals_hold_the_errors_that_validation_and_second_runs_found() -> None:
    asked = "python reports/figures.py --tables"
    assert prediction_errors.OWN.read_text() == script("figures.py")["validated"](), asked
    assert repeatability.OWN.read_text() == script("figures.py")["repeatable"](), asked


def test_a_busy_machine_measures_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    main = script("figures.py")["main"]
    monkeypatch.setattr("os.getloadavg", lambda: (0.9, 0.9, 0.9))
    monkeypatch.setitem(main.__globals__, "WAIT_S", -1.0)
    monkeypatch.setitem(main.__globals__, "run", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stopped:
        main(["default-run"])
    assert (
        str(stopped.value)
        == "default-run: load 0.9, which does not fall to 0.3: close other programs, or --noisy"
    )
