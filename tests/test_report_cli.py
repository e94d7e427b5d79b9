"""``netsim report`` as a command, in an environment that has only what docs/reports.md says to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from netsim_ddp.results.files import save
from tests.commands import ROOT
from tests.results_factory import sweep, training

HEADLINE = ROOT / "reports" / "headline-resnet50.json"
DOCUMENTED = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")


def installed_by(line: str) -> set[str]:
    """The distributions that ``pip install line`` brings, as far as this environment tells: those named, what they
    need, and so on."""
    found: set[str] = set()
    waiting = [Requirement(word) for word in re.findall(r'"([^"]+)"', line)]
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(each) for each in metadata.requires(name) or ()]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has what the documentation's line installs, and nothing else."""
    (line,) = re.findall(r'^pip install ("numpy.*)$', DOCUMENTED, re.MULTILINE)
    folder = tmp_path_factory.mktemp("site")
    for name in installed_by(line):
        for path in metadata.distribution(name).files or ():
            top = path.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    (folder / "netsim_ddp").symlink_to(ROOT / "netsim_ddp")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(folder), "COLUMNS": "80"}


def python(environment: dict[str, str], *words: str, at: Path) -> subprocess.CompletedProcess[str]:
    # -S: without this environment's site-packages.
    return subprocess.run(
        [sys.executable, "-S", *words],
        cwd=at,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def netsim(environment: dict[str, str], *words: str, at: Path) -> subprocess.CompletedProcess[str]:
    return python(environment, "-m", "netsim_ddp", "report", *words, at=at)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    save(sweep(bandwidths=(10**8, 10**10), workers=(2,), methods=3), tmp_path / "sweep.json")
    save(training(), tmp_path / "train.json")
    return tmp_path


def test_every_report_is_made_without_torch(bare: dict[str, str], here: Path) -> None:
    missing = python(
        bare, "-c", "import importlib.util as u; print([n for n in ('torch', 'torchvision', 'numba',"
        " 'scipy', 'matplotlib') if u.find_spec(n)])", at=here,
    )  # fmt: skip
    assert missing.stdout.strip() == "[]", missing.stderr
    names = ["html", "markdown", "csv", "junit", "latex", "bibtex", "github-benchmark", "bencher"]
    words = [word for name in names for word in (f"--{name}", f"out.{name}")]
    done = netsim(bare, "sweep.json", "train.json", str(HEADLINE), *words, "--figures", "figures", at=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert all((here / f"out.{name}").stat().st_size > 100 for name in names)
    assert {path.suffix for path in (here / "figures").iterdir()} == {".svg"}


def test_pdf_without_matplotlib_says_what_to_install(bare: dict[str, str], here: Path) -> None:
    done = netsim(bare, "sweep.json", "--figures", "figures", "--format", "svg,pdf", at=here)
    assert done.returncode == 4
    assert done.stderr.strip().count("\n") == 0
    assert "pip install 'netsim-ddp[report]'" in done.stderr
    assert not (here / "figures").exists()


def test_without_an_exporter_it_is_the_table_again(bare: dict[str, str], here: Path) -> None:
    done = netsim(bare, str(HEADLINE), at=here)
    assert done.returncode == 0, done.stderr
    assert "topk,values=fp16,overlap: 16x dense" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    several = netsim(bare, str(HEADLINE), "sweep.json", at=here)
    assert several.stdout.startswith("headline-resnet50.json\n")
    assert "\nsweep.json\n" in several.stdout
    trained = netsim(bare, "train.json", at=here)
    assert trained.returncode == 0, trained.stderr
    assert "verdict" in trained.stdout
    assert "Missing" not in trained.stdout


def test_last_is_the_newest_run_here(bare: dict[str, str], here: Path) -> None:
    (here / ".netsim").mkdir()
    (here / "sweep.json").rename(here / ".netsim" / "run.json")
    (here / ".netsim" / "last.json").symlink_to("run.json")
    for words in ([], ["last"]):
        done = netsim(bare, *words, "--markdown", "-", at=here)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("## netsim: simple\\_cnn")
        assert "run.json" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["last"], "there is no last run"),
        (["sweep.json", "--html", "-", "--csv", "-"], "both want stdout"),
        (["sweep.json", "--html", "nowhere/out.html"], "no folder nowhere"),
        (["sweep.json", "--format", "pdf"], "add --figures DIR"),
        (["sweep.json", "--figures", "out", "--format", "gif"], "choose from svg, pdf, png"),
        (["nothing.json"], "cannot read nothing.json"),
        (["sweep.json", "--html", "--csv"], "--html needs a file"),
    ],
)
def test_a_mistake_is_one_line(bare: dict[str, str], here: Path, words: list[str], says: str) -> None:
    done = netsim(bare, *words, at=here)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert says in line
