"""What workers cost on one host: memory and time to start of ``netsim run``, by how many there are.

python reports/growth.py                (an hour on two cores; writes growth.json and growth.md beside this file)
python reports/growth.py --seconds 600  (stops before; the same command again goes on where it stopped)
python reports/growth.py --again        (forgets what was measured before)
python reports/growth.py --page         (only the page, from the file)
python reports/growth.py --quick        (whether everything runs: two and four workers, no file)

Linux only. While a command runs, its processes are found in /proc, and what each holds of the machine's memory is read
from there: a page that several processes share counts in each with its part (Pss).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from form import keep, made_on, page

from netsim_ddp.results.files import load
from netsim_ddp.results.limits import exchange, is_limited
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment

HERE = Path(__file__).resolve().parent
FILE, PAGE = HERE / "growth.json", HERE / "growth.md"
WORKERS, RUNS = (8, 16, 32, 64), 3
CASES = (("simple_cnn", "bucket"), ("simple_cnn", "tc"), ("resnet18", "bucket"))
WORDS = [
    *("run", "--compute", "50ms", "--bandwidth", "100mbps", "--execution", "replayed", "--baseline", "none"),
    *("--repeats", "1", "--steps", "3", "--warmup", "1"),
    *("--method", "dense,overlap=off", "--method", "topk,overlap=off"),
]
READY = re.compile(r"(\d+) ranks are ready, ([\d.]+) s after they were forked")
"""What ``netsim -v`` says when the ranks of a cell have joined and built everything, before the first step."""
PAUSE = 3
"""Reading everybody's memory takes a quarter of a core: after each look so many times as long nothing is read."""
DEADLINE_S = 600.0
Row = dict[str, Any]


def command(model: str, link: str, workers: int) -> list[str]:
    return [*WORDS, "--model", model, "--link", link, "--workers", str(workers)]


def measure(model: str, link: str, workers: int) -> Row:
    """One command: when its first step began, how long each method's ranks took from the fork to it, and the most that
    its processes held of the memory."""
    words, began = command(model, link, workers), time.monotonic()
    print("netsim", *words, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-m", "netsim_ddp", *words, "-v", "--json", "out.json"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        memory = Memory(child.pid)
        memory.start()
        first_s, forked, said = math.nan, [], ""
        assert child.stderr is not None
        for line in child.stderr:
            said = line.strip() or said
            if (found := READY.search(line)) is not None:
                first_s = time.monotonic() - began if not forked else first_s
                forked.append(float(found[2]))
        code = child.wait(DEADLINE_S)
        memory.stop()
        row: Row = {"model": model, "link": link, "workers": workers, "load_1min": os.getloadavg()[0]}
        if code:
            return {**row, "refused": said.removeprefix("netsim: ")}
        result = load(Path(folder) / "out.json")
    steps = {
        cell.method: {
            "step_s": cell.summary.step_s.median if cell.summary else None,
            "limited": is_limited(cell),
            "exchange_s": found.took_s if (found := exchange(cell)) else None,
            "model_s": found.model_s if found else None,
        }
        for cell in result.cells
    }
    whole = time.monotonic() - began
    return {
        **row,
        "first_step_s": first_s,
        "forked_s": forked,
        "whole_s": whole,
        **memory.most,
        "steps": steps,
    }


class Memory(threading.Thread):
    """Looks again and again at what the ranks of command ``pid`` hold, and keeps the most."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.most: Row = {"pss_bytes": 0}

    def run(self) -> None:
        took = 0.1
        while not self._over.wait(took * PAUSE):
            begin = time.monotonic()
            if (found := self._look()) is not None and found["pss_bytes"] > self.most["pss_bytes"]:
                self.most = found
            took = max(0.01, time.monotonic() - begin)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _look(self) -> Row | None:
        """All processes of the command, and of these the ranks: what a fork server has forked."""
        parents = dict(processes())
        everyone = [pid for pid in parents if self._pid in (pid, *ancestors(pid, parents))]
        ranks = [pid for pid in everyone if all("fork_server" in words(each) for each in (pid, parents[pid]))]
        sizes = {pid: memory_of(pid) for pid in everyone}
        if not ranks:
            return None
        return {
            "pss_bytes": sum(size["Pss"] for size in sizes.values()),
            "rank_bytes": round(statistics.mean(sizes[pid]["Pss"] for pid in ranks)),
            "tables_bytes": sum(size["VmPTE"] for size in sizes.values()),
            "threads": max(size["Threads"] for pid, size in sizes.items() if pid in ranks),
            "files": max(map(open_files, ranks)),
        }


def processes() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended meanwhile
            yield int(name), int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])


def ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 1:
        yield pid


def words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def memory_of(pid: int) -> dict[str, int]:
    """Bytes, and the number of threads; zeros of a process that has ended."""
    found = {"Pss": 0, "VmPTE": 0, "Threads": 0}
    for name in ("smaps_rollup", "status"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/{name}").read_text(errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key in found:
                    found[key] = int(value.split()[0]) * (1 if key == "Threads" else 1024)
    return found


def open_files(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """``4.1 (3.9..4.6)``: the median and the range; one number where they agree."""
    middle, low, high = (format(each, form) for each in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}..{high})"


def text(kept: dict[str, Any]) -> str:
    """The page."""
    machine = kept["environment"]
    runs: dict[tuple[str, str, int], list[Row]] = {}
    for row in kept["rows"]:
        runs.setdefault((row["model"], row["link"], row["workers"]), []).append(row)
    loads = [row["load_1min"] for row in kept["rows"]]
    tables = [
        "*First step* is from the command's start to the first step: torch is imported "
        "once, the link made and probed, the gradients recorded by one worker after the other. *Forked to ready* is "
        "the part from the fork of the workers on, of the first method and of the second, which finds the gradients "
        "recorded. *Per worker more* is what each worker added to the row above. Memory is the most that all "
        "processes of the command held at once (Pss: shared pages count once), and the mean of a worker; page tables "
        "are the kernel's, beside it. Files and threads are a worker's. *Exchange* is how long the exchange of a step "
        "took, of what the link's model says: where it is limited by this host, the step says nothing of the link. "
        "Medians with the range.",
    ]
    if "note" in kept:
        tables.append(kept["note"])
    for model, link in dict.fromkeys((model, link) for model, link, _ in runs):
        mine = {workers: rows for (a, b, workers), rows in runs.items() if (a, b) == (model, link)}
        tables += [f"## {model}, {link}", "\n".join(start_table(mine)), "\n".join(memory_table(mine))]
    return page(
        "What workers cost on one host",
        "How many workers does one host hold, how long do they take to start, and what does each cost?",
        answer({key: done(rows) for key, rows in runs.items() if done(rows)}),
        tables,
        [
            "`python reports/growth.py` (half an hour). Each row is so many runs of "
            f"`netsim {' '.join(command('MODEL', 'LINK', 0)[:-1])} P`. Every run is in [growth.json](growth.json).",
            f"Made on {made_on(machine, kept.get('commit'))}, {kept['memory_bytes'] / 1e9:.0f} GB of memory; load "
            f"{min(loads):.1f} to {max(loads):.1f} at the end of a run, the command's own and that of other programs.",
        ],
        [
            "What a step takes on machines of their own: this host limits most exchanges from 16 workers on.",
            "More than 64 workers, and models whose gradients do not fit that often into memory.",
        ],
    )


def answer(runs: dict[tuple[str, str, int], list[Row]]) -> str:
    """Of the most workers that each model had."""
    most: dict[str, tuple[str, str, int]] = {}
    for key in runs:
        if key[0] not in most or key[2] > most[key[0]][2]:
            most[key[0]] = key
    said = [
        f"{workers} workers of {model} start in {statistics.median(row['first_step_s'] for row in rows):.0f} s and "
        f"hold {statistics.median(row['rank_bytes'] for row in rows) / 1e6:.0f} MB each"
        for (model, _, workers), rows in ((key, runs[key]) for key in most.values())
    ]
    return f"{'; '.join(said)}, on the link {' and '.join(sorted({key[1] for key in most.values()}))}."


def done(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "refused" not in row]


def added(runs: dict[int, list[Row]], workers: int, figure: Callable[[Row], float], form: str) -> str:
    """What each worker added to the next smaller number of them, in the medians."""
    before = max((count for count in runs if count < workers and done(runs[count])), default=None)
    if before is None:
        return ""
    more = [statistics.median(map(figure, done(runs[count]))) for count in (workers, before)]
    return format((more[0] - more[1]) / (workers - before), form)


def start_table(runs: dict[int, list[Row]]) -> list[str]:
    heads = (
        "P | runs | first step, s | forked to ready, s | again, s | per worker more, ms "
        "| dense: step, ms; exchange / model | topk: step, ms; exchange / model"
    )
    lines = [f"| {heads} |", "|" + "--:|" * (heads.count("|") + 1)]
    for workers, all_rows in sorted(runs.items()):
        if not (rows := done(all_rows)):
            lines.append(f"| {workers} | {len(all_rows)} | {all_rows[0]['refused']} |")
            continue
        cells = [
            str(workers),
            str(len(rows)),
            spread([row["first_step_s"] for row in rows]),
            *(spread([row["forked_s"][number] for row in rows]) for number in (0, 1)),
            added(runs, workers, lambda row: 1e3 * row["forked_s"][0], ".0f"),
            *(step_cell(rows, method) for method in ("dense", "topk")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def step_cell(rows: Sequence[Row], method: str) -> str:
    steps = [row["steps"][method] for row in rows]
    shares = [step["exchange_s"] / step["model_s"] for step in steps if step["model_s"]]
    limited = ", limited" if any(step["limited"] for step in steps) else ""
    share = f"; {spread(shares, '.2f')}{limited}" if shares else ""
    return f"{spread([1e3 * step['step_s'] for step in steps], '.0f')}{share}"


def memory_table(runs: dict[int, list[Row]]) -> list[str]:
    heads = "P | all, GB | a worker, MB | per worker more, MB | page tables, MB | files | threads"
    lines = [f"| {heads} |", "|" + "--:|" * (heads.count("|") + 1)]
    for workers, all_rows in sorted(runs.items()):
        if not (rows := done(all_rows)):
            continue
        cells = [
            str(workers),
            spread([row["pss_bytes"] / 1e9 for row in rows], ".2f"),
            spread([row["rank_bytes"] / 1e6 for row in rows], ".0f"),
            added(runs, workers, lambda row: row["pss_bytes"] / 1e6, ".0f"),
            spread([row["tables_bytes"] / 1e6 for row in rows], ".0f"),
            *(str(max(row[key] for row in rows)) for key in ("files", "threads")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def save(kept: dict[str, Any]) -> None:
    keep(FILE, kept)
    PAGE.write_text(text(kept))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after it")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--case", nargs=2, action="append", metavar=("MODEL", "LINK"), help="instead of all")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument(
        "--quick", action="store_true", help="whether everything runs: two and four workers, no file"
    )
    parser.add_argument("--page", action="store_true", help="only write the page, from the file")
    given = parser.parse_args(arguments)
    if given.page:
        PAGE.write_text(text(json.loads(FILE.read_text())))
        return
    cases = [tuple(case) for case in given.case or CASES]
    if given.quick:
        given.workers, given.runs, cases = [2, 4], 1, [("simple_cnn", "bucket")]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kept: dict[str, Any] = {
        "words": WORDS,
        "environment": environment(),
        "commit": code_of([])[0].commit,
        "memory_bytes": total,
        "rows": [],
    }
    if FILE.exists() and not given.again and not given.quick:
        before = json.loads(FILE.read_text())
        if before["words"] == WORDS and before["environment"]["cpu"] == kept["environment"]["cpu"]:
            kept = before
    began = time.monotonic()
    for number in range(given.runs):
        for model, link in cases:
            for workers in given.workers:
                key = (model, link, workers)
                if sum((row["model"], row["link"], row["workers"]) == key for row in kept["rows"]) > number:
                    continue
                if time.monotonic() - began > given.seconds:
                    sys.exit("stopped: the same command goes on from here")
                kept["rows"].append(measure(*key))
                if not given.quick:
                    save(kept)
    print(text(kept))


if __name__ == "__main__":
    main()
