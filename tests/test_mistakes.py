"""Words on a command line that no command can use: a flag twice, a file without its flag."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsim_ddp.results.files import save
from tests.commands import answer, complaint
from tests.planted_recordings import file
from tests.results_factory import make

TWICE = {
    "run -n 8 -n 64": "--workers is given twice: 8 and 64 (keep one: --workers 64)",
    "run -n 8 --workers 8": "--workers is given twice: 8 and 8 (keep one: --workers 8)",
    "predict --compute 5ms -n 8 -n 64": "--workers is given twice: 8 and 64 (write --workers 8,64)",
    "predict --delay 1ms --delay=5ms": "--delay is given twice: 1ms and 5ms (write --delay 1ms,5ms)",
    "train --tune-lr 0.1 --tune-lr 1": "--tune-lr is given twice: 0.1 and 1 (write --tune-lr 0.1,1)",
    "train --seed 1 --seed 2 --seed 3": "--seed is given 3 times: 1 and 2 and 3 (keep one: --seed 3)",
    "sweep quick --resume --fresh": "--resume and --fresh are both given (keep one of them)",
    "bench compress --sizes 10M --sizes 1M": "--sizes is given twice: 10M and 1M (write --sizes 10M,1M)",
    "record -o a -o b -- python": "--output is given twice: a and b (keep one: --output b)",
    "regress --base HEAD -n 2 -n 4": "--workers is given twice: 2 and 4 (keep one: --workers 4)",
}


@pytest.mark.parametrize("words", TWICE)
def test_a_flag_for_one_value_is_given_once(words: str, tmp_path: Path) -> None:
    assert complaint(words.split(), tmp_path) == TWICE[words]


def test_flags_that_may_stand_twice_still_do(tmp_path: Path) -> None:
    words = "run --show-commands --link tc -n 2 --slow-rank 0=1mbps --slow-rank 1=2mbps --show-commands"
    done = answer(words.split(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1mbit" in done.stdout or "1000000" in done.stdout
    assert done.stdout.count("tbf") >= 2


FILES = {
    "run r.netsim": "r.netsim is a file without a flag (write netsim run --recording r.netsim)",
    "predict r.netsim": "(write netsim predict --recording r.netsim)",
    "probe r.netsim": "(write netsim probe --recording r.netsim)",
    "train r.netsim": "(netsim show r.netsim shows it, netsim run --recording r.netsim plays it)",
    "run steps.json": "(write netsim run --config steps.json to measure it again, or netsim show steps.json)",
    "train a.yaml": "(write netsim train --config a.yaml)",
    "predict steps.json": "(write netsim predict --validate steps.json)",
    "bench compress steps.json": "(write netsim show steps.json)",
    "sweep r.netsim": "r.netsim is a recording, not text (netsim show r.netsim shows it, netsim run --rec",
    "run --config r.netsim": "r.netsim is a recording, not text (netsim show r.netsim shows it, netsim run",
    "compare steps.json r.netsim": "r.netsim is a recording, not JSON (netsim show r.netsim shows it, netsim run",
    "run --recording steps.json": "is JSON, not a recording (a result is measured again by --config steps.json)",
    "report steps.json r.netsim": "a recording is reported alone (netsim report r.netsim and no other file)",
    "show a.yaml": "a.yaml is no file that netsim wrote (a scenario is run by netsim run --config a.yaml)",
    "record r.netsim": "no such program (netsim show r.netsim shows a recording, netsim run --recording",
    "launch train.py": "no such program (write -- python train.py)",
    "report probe.json": "not a netsim result file: it holds a probe (netsim show probe.json shows what netsim wro",
}


@pytest.mark.parametrize("words", FILES)
def test_a_file_in_the_wrong_place_is_told_its_flag_or_command(words: str, tmp_path: Path) -> None:
    file(tmp_path / "r.netsim")
    save(make([]), tmp_path / "steps.json")
    (tmp_path / "a.yaml").write_text("bandwidth: 1gbps\n")
    (tmp_path / "train.py").write_text("")
    (tmp_path / "probe.json").write_text('{"schema_version": 1, "kind": "probe"}')
    assert FILES[words] in complaint(words.split(), tmp_path)
