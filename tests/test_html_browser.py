"""The HTML page in a real browser: nothing in the console, nothing cut, nothing wider than a telephone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.export.html import page
from netsim_ddp.report.export.recording_page import recording_page
from netsim_ddp.results.files import load
from tests.planted_recordings import apart
from tests.results_factory import make, sweep, training
from tests.test_report_cli import HEADLINE
from tests.test_reports import hostile

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)}")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip
WIDTHS = (360, 1280)
# Runs in a copy of the page, which is allowed to: measures it and tells the page around it.
MEASURE = """<script>
addEventListener("load", () => {
  const cut = [], root = document.documentElement;
  for (const svg of document.querySelectorAll("svg.plot"))
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBBox(), view = svg.viewBox.baseVal;
      if (box.x < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1)
        cut.push(text.textContent);
    }
  const plots = [...document.querySelectorAll("svg.plot")].map(svg => svg.getBoundingClientRect());
  const letters = document.querySelector("svg.plot text");
  parent.postMessage({
    name: window.name, scrollWidth: root.scrollWidth, clientWidth: root.clientWidth, cut,
    plots: plots.length, empty: plots.filter(box => box.width < 100 || box.height < 50).length,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    letters: letters ? letters.getBoundingClientRect().height : null,
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  }, "*");
});
</script>"""
LISTEN = """<pre id="found"></pre><script>
const found = {};
addEventListener("message", event => {
  found[event.data.name] = event.data;
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def visit(address: str, profile: Path) -> tuple[str, list[str]]:
    """The page's document after it has loaded, and what its console said."""
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", address],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def pages() -> dict[str, str]:
    sources = {
        "sweep": [Source("sweep.json", sweep(bandwidths=(10**8, 10**9, 10**10)))],
        "headline": [Source(HEADLINE.name, load(HEADLINE))],
        "training": [Source("train.json", training())],
        "empty": [Source("empty.json", make([], status="failed", warnings=["nothing ran"]))],
    }
    made = {name: page(Collection(each)) for name, each in sources.items()}
    made["hostile"] = page(
        hostile("</script><script>console.log('owned')</script><img src=x onerror=alert(1)>" * 3)
    )
    made["recording"] = recording_page(apart(model="<i>Net", notes=["a note"]), [0.4, None], 10**6)
    return made


@needs_browser
def test_every_page_is_quiet_whole_and_fits_a_telephone(tmp_path: Path) -> None:
    made = pages()
    frames = []
    for name, text in made.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        measured, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert policies == 1
        dark, themes = re.subn(r"@media\(prefers-color-scheme:dark\)", "@media all", measured)
        assert themes == 1
        for theme, copy in (("light", measured), ("dark", dark)):
            (tmp_path / f"{name}-{theme}.html").write_text(
                copy.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8"
            )
        frames += [(f"{name} light {width}", f"{name}-light.html", width) for width in WIDTHS]
        frames.append((f"{name} dark 360", f"{name}-dark.html", 360))
        frames.append((f"{name} as it is", f"{name}.html", 1280))
    body = "".join(
        f'<iframe name="{name}" src="{file}" width="{width}" height="800"></iframe>'
        for name, file, width in frames
    )
    (tmp_path / "all.html").write_text(f"<!doctype html><meta charset=utf-8>{LISTEN}{body}", encoding="utf-8")
    document, console = visit((tmp_path / "all.html").as_uri(), tmp_path / "profile")
    assert console == []
    match = re.search(r'<pre id="found">(.*?)</pre>', document)
    assert match is not None
    found: dict[str, dict[str, Any]] = json.loads(html.unescape(match[1]))
    assert set(found) == {name for name, _, _ in frames if "as it is" not in name}
    for name, seen in found.items():
        assert seen["scrollWidth"] <= seen["clientWidth"], f"{name} scrolls sideways"
        assert seen["clientWidth"] in range(int(name.split()[-1]) - 20, int(name.split()[-1]) + 1)
        assert seen["cut"] == [], name
        assert seen["broken"] == seen["empty"] == 0, name
        assert seen["plots"] == made[name.split()[0]].count('<svg class="plot"')
        assert seen["letters"] is None or seen["letters"] >= 10, (
            f"{name}: letters are {seen['letters']} pixels high"
        )
        bright = sum(map(int, re.findall(r"\d+", seen["ground"]))) > sum(
            map(int, re.findall(r"\d+", seen["ink"]))
        )
        assert bright == ("light" in name), f"{name}: {seen['ink']} on {seen['ground']}"
