"""What may be compared with what: the one place that decides it.

====================================================  ==================================================================
question                                              what must agree
====================================================  ==================================================================
Which dense cell is a step time compared with, and    :func:`setting`: model, data, workers, link, execution, device,
which cells stand in one table?                       backend, and every axis of a sweep but those of the methods
Which dense cell is a training compared with?         the same, without the axes of the learning rate
Which cells stand on one plot over bandwidth or       :func:`curve_setting`: the same but for that one, whatever the
workers, and have their break-even there?             file's axes say of what the cell's own fields tell
Which cells of a plot make one line of it?            :func:`line`: method, options, overlap, threads, codec times
Which cells of two files are compared or gated?       :func:`subject`, the method included; and the files' :data:`WORK`
Must bytes and parameters of the two be equal?        :func:`computation`: seed, lengths, batch, processor, libraries
Is a sweep's saved cell the one that is planned now?  :func:`planned`: all settings but the methods' and how often and
                                                      how long; :data:`MACHINE`; and no rule that was given up
Were the figures made by the same rule?               :func:`rules`; with another rule they are never compared
====================================================  ==================================================================

Rules are those by which a figure came about, where netsim has had several. A file that predates a rule does not name
it, its schema version tells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError

from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.options import written
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.recorded import RecordedTraining
from netsim_ddp.units import counted, format_rate

METHOD_FIELDS = frozenset({"methods", "ratio", "overlap"})
"""Settings of a scenario that say which methods are run."""
METHOD_AXES = METHOD_FIELDS | {"method"}
"""Axes of a sweep that tell methods apart, not the setting in which they are compared."""
LEARNING_RATE_AXES = frozenset({"learning_rate", "tune_lr"})
"""Axes that do not set a training apart from its dense baseline: each method is trained at the rate that suits it."""
LINK_AXES = frozenset({"bandwidth", "delay", "jitter", "loss", "queue", "slow_rank", "peak", "credit"})
"""Axes that the description of a cell's link tells."""
RUN_AXES = frozenset({"execution", "link", "device", "backend"})
"""Axes that fields of a cell tell, of how it was run."""
TOLD_AXES = METHOD_AXES | LINK_AXES | RUN_AXES | {"model", "dataset", "workers", "recording"}
"""All axes that a cell's own fields tell."""
COMPUTE_AXES = frozenset({"compute", "compute_s"})
NOT_PLANNED = METHOD_FIELDS | {"baseline", "repeats", "time_budget_s", "timeout_s"}
"""Settings that may change without making another cell of it: the method is named beside them."""
MACHINE = ("cpu", "cores", "torch")
"""Of an environment, what must be the same for a sweep to go on: figures of two machines do not go into one table."""
WORK = ("batch_size", "compute_s", "scale_compute")
"""Of a scenario, what two files must share: a cell does not say it."""
LIBRARIES = ("cpu", "torch", "numpy", "numba")
"""Of an environment, what the bits of a computation depend on."""
COMPUTATION = (
    "seed", "steps", "warmup", "batch_size", "learning_rate", "momentum", "compute_s", "ratio", "epochs", "optimizer",
    "weight_decay", "loss_function",
)  # fmt: skip
"""Of a scenario, what they depend on beside a cell's own fields."""
RECIPE: Mapping[str, object] = {"optimizer": "sgd", "weight_decay": 0.0, "loss_function": "cross-entropy"}
"""Of a scenario, how a step is taken, and what a file says that does not know the setting."""

READY, TCP = "buckets become full", "TCP on the bucket"
RULES = (READY, TCP)
SINCE = 4
"""The schema version whose files know these rules."""
BY_BYTES = "in proportion to bytes, which no backward pass does"
AS_MEASURED = "as in a real backward pass"
IDEAL = "ideal"

Setting = tuple[object, ...]
CurveAxis = Literal["bandwidth", "workers"]
Rules = Mapping[str, str]
"""What a rule is about, and which one held; without those that a cell's figures do not depend on."""


def axes(cell: Cell, *, without: frozenset[str] = METHOD_AXES) -> dict[str, str]:
    """Returns the coordinates of ``cell`` in its sweep's matrix, by axis, as the file writes them and in its order."""
    return {key: str(value) for key, value in cell.axes.items() if key not in without}


def link_description(cell: Cell) -> str:
    """Returns the link in words: ``1 Gbit/s; delay 5 ms``."""
    return cell.link.shape or (format_rate(cell.bandwidth_bps) if cell.bandwidth_bps else "unshaped")


def link_without_rate(cell: Cell) -> str:
    """Returns the link in words without the rate that all ranks have: ``delay 5 ms``, or an empty text."""
    rate = format_rate(cell.bandwidth_bps) if cell.bandwidth_bps else ""
    return (cell.link.shape or rate).removeprefix(rate).lstrip("; ")


def method_id(cell: Cell) -> str:
    """Returns the method with all its options as ``--method`` takes it: ``topk,overlap=on,ratio=0.01``. A collective
    that ``auto`` chose is not among them."""
    overlap = {"overlap": True} if cell.overlap else {}
    return MethodSpec(name=cell.method, params={**asked_params(cell), **overlap}).id


def asked_params(cell: Cell) -> dict[str, object]:
    """Returns the method's options without overlap, and without a collective that ``auto`` chose."""
    unasked = {"overlap"} if "collective=" in cell.id else {"overlap", "collective"}
    return {key: value for key, value in cell.params.items() if key not in unasked}


def setting(cell: Cell, *, without: frozenset[str] = frozenset()) -> Setting:
    """Returns what two cells must share to be compared with each other; the axes ``without`` may differ."""
    link = cell.link
    return (
        cell.model, cell.dataset, cell.workers, cell.bandwidth_bps, link.shape, link.delay_s, link.mechanism,
        cell.execution, cell.device, cell.backend, tuple(axes(cell, without=METHOD_AXES | without).items()),
    )  # fmt: skip


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Returns ``cells`` in groups of one setting, each a table of its own, in the order in which they were run."""
    found: dict[Setting, list[Cell]] = {}
    for cell in cells:
        found.setdefault(setting(cell), []).append(cell)
    return list(found.values())


def curve_setting(cell: Cell, over: CurveAxis) -> Setting:
    """Returns what cells, perhaps of several files, must share to stand on one plot over the axis ``over``. Threads may
    differ, as they may between a method and dense."""
    link = cell.link
    fixed = (cell.bandwidth_bps, link.shape) if over == "workers" else (cell.workers, link_without_rate(cell))
    return (
        cell.model, cell.dataset, *fixed, link.delay_s, link.mechanism, link.varies, cell.execution, cell.device,
        cell.backend, *sorted(axes(cell, without=TOLD_AXES).items()),
    )  # fmt: skip


def line(cell: Cell) -> Setting:
    """Returns what cells of one plot over bandwidth must share to be points of one line."""
    return (method_id(cell), cell.threads, cell.substituted)


def subject(cell: Cell, result: Result) -> dict[str, str]:
    """Returns everything that two measurements must share to be compared by ``compare`` or ``regress``, in words, by
    what it is about. The method is the first."""
    scenario = result.scenario
    return {
        "method": method_id(cell),
        "kind": result.kind,
        "model": str(cell.model or scenario.get("model", "")),
        "dataset": str(cell.dataset or scenario.get("dataset") or ""),
        "workers": counted(cell.workers, "worker"),
        "link": link_description(cell),
        "mechanism": cell.link.mechanism,
        "execution": cell.execution,
        "threads": counted(cell.threads, "thread"),
        "device": cell.device,
        "backend": cell.backend,
        "substituted": cell.substituted or "",
        "recipe": ", ".join(recipe(settings_of(cell, result))),
        **rules(cell, result),
        **{
            f"axis {key}": f"{key}={value}"
            for key, value in axes(cell, without=TOLD_AXES | {"threads"}).items()
        },
    }


def recipe(settings: Mapping[str, object]) -> list[str]:
    """Returns in words how a step is taken, as far as that is not by plain SGD and cross entropy: ``["adamw", "loss
    my_module:loss"]``."""
    said = {key: settings.get(key, usual) for key, usual in RECIPE.items()}
    words = {
        "optimizer": f"{said['optimizer']}",
        "weight_decay": f"weight decay {written(said['weight_decay'])}",
        "loss_function": f"loss {said['loss_function']}",
    }
    return [words[key] for key, usual in RECIPE.items() if said[key] != usual]


def computation(result: Result) -> str | None:
    """Returns what the bits of a result's computations depend on beside the code and the cell: where two results agree,
    so must everything that was computed.

    None where the file does not hold all of it: what is unknown cannot be taken for equal. A package that was not used
    stands in the file as null, and is known.
    """
    known = {key: result.scenario.get(key, RECIPE.get(key)) for key in COMPUTATION}
    if known["seed"] is None or not all(key in result.environment for key in LIBRARIES):
        return None
    return repr((known, [result.environment[key] for key in LIBRARIES]))


def same_run(settings: Mapping[str, object]) -> str:
    """Returns what two combinations of a matrix must share to be one run, of several methods on one link.

    Args:
        settings: resolved, as JSON has them.
    """
    return _text(settings, METHOD_FIELDS)


def planned(settings: Mapping[str, object], method: str) -> str:
    """Returns a digest of everything that must be equal for two measurements of a sweep to be of the same thing.

    Args:
        settings: of the run, resolved, as JSON has them.
        method: the method's id.
    """
    return hashlib.sha256(f"{_text(settings, NOT_PLANNED)}{method}".encode()).hexdigest()[:16]


def _text(settings: Mapping[str, object], without: frozenset[str]) -> str:
    kept = {key: value for key, value in settings.items() if key not in without}
    if isinstance(recording := kept.get("recording"), Mapping):
        kept["recording"] = recording.get("key")  # not where its file lies
    return json.dumps(kept, sort_keys=True)


def same_machine(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Returns whether a sweep that ran in the environment ``one`` can go on in ``other``."""
    return all(one.get(key) == other.get(key) for key in MACHINE)


def other_work(base: Mapping[str, object], new: Mapping[str, object]) -> str | None:
    """Returns the first of :data:`WORK` in which two files differ, that both hold; None where they did the same."""
    return next((key for key in WORK if key in base and key in new and base[key] != new[key]), None)


def rules(cell: Cell, result: Result) -> dict[str, str]:
    """Returns the rules that ``cell`` of ``result`` was measured by."""
    found = curve_rules(cell, result)
    if not cell.overlap:
        found.pop(READY, None)
    elif READY in found and (
        sources := {result.ready[key].source for key in cell.ready if key in result.ready}
    ):
        found[READY] += "".join(f" of {source}" for source in sorted(filter(None, sources)))
    return found


def curve_rules(cell: Cell, result: Result) -> dict[str, str]:
    """Returns the rules that hold for all cells of one plot with ``cell``, whether they overlap or not."""
    found = {}
    if compute_s(cell, result) > 0:
        found[READY] = BY_BYTES if result.schema_version < SINCE else AS_MEASURED
    if cell.link.mechanism == "bucket" and cell.link.delay_s > 0:
        found[TCP] = IDEAL if result.schema_version < SINCE else cell.link.tcp or IDEAL
    return found


def outdated(cell: Cell, result: Result) -> bool:
    """Returns whether ``cell`` was measured by a rule that this version of netsim no longer uses."""
    return result.schema_version < SINCE and bool(rules(cell, result))


def differ(base: Rules, base_name: str, new: Rules, new_name: str) -> str | None:
    """Returns why figures of ``base`` and ``new`` are not compared, and what to do; None where the rules agree."""
    about = next((key for key in RULES if key in base and key in new and base[key] != new[key]), None)
    if about is None:
        return None
    return (
        f"{about}: {base[about]} in {base_name}, {new[about]} in {new_name}, and figures of two rules are not "
        "compared; measure both with this netsim and the same options"
    )


def compute_s(cell: Cell, result: Result) -> float:
    """Returns the emulated compute of a step, seconds; 0 where it was real."""
    found = settings_of(cell, result).get("compute_s")
    return float(found) if isinstance(found, int | float) else 0.0


def recording_of(cell: Cell, result: Result) -> RecordedTraining | None:
    """Returns the recording that ``cell`` played; None where it played none."""
    found = settings_of(cell, result).get("recording")
    try:
        return None if found is None else RecordedTraining.model_validate(found)
    except ValidationError:  # of a file that somebody changed
        return None


def settings_of(cell: Cell, result: Result) -> Mapping[str, object]:
    """Returns the resolved settings that the cell was run with; a sweep holds them for each of its combinations."""
    scenario = result.scenario
    sweep = scenario.get("sweep")
    runs = sweep.get("runs") if isinstance(sweep, dict) else None
    for run in runs if isinstance(runs, list) else ():
        found, settings = (run.get("axes"), run.get("settings")) if isinstance(run, dict) else (None, None)
        if not isinstance(found, dict) or not isinstance(settings, dict):
            continue
        if all(key in cell.axes and cell.axes[key] == value for key, value in found.items()):
            return settings
    return scenario
