"""From the combinations of a matrix to what is run: runs, their cells, and the order of the repeats.

Combinations that differ in their methods alone are one run, on one link and at one time, and a cell that several of
them ask for (dense above all) is measured once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.results.identity import METHOD_AXES, planned, same_run
from netsim_ddp.scenario import Settings
from netsim_ddp.scenario.matrix import Point

MAX_NAMESPACES = 128
"""The most network namespaces of the links that exist at the same time."""


@dataclass(frozen=True)
class PlannedCell:
    """One method of one run. ``method`` is resolved, ``axes`` are as the file writes them."""

    id: str
    method: MethodSpec
    axes: Mapping[str, Any]
    identity: str
    """A digest of everything that must be equal for two measurements to be of the same thing."""


@dataclass(frozen=True)
class Run:
    """What shares a link: resolved ``settings``, whose ``methods`` are the cells'. ``label`` is its place in words,
    ``bandwidth=1gbps,workers=4``; empty without axes."""

    label: str
    axes: Mapping[str, Any]
    settings: Settings
    cells: tuple[PlannedCell, ...]

    @property
    def wanted(self) -> tuple[Any, str]:
        """The link, as :class:`netsim_ddp.ranks.pool.Pool` asks for it."""
        return self.settings.link_spec(), self.settings.link


@dataclass(frozen=True)
class Unit:
    """What is run, and kept or lost, as a whole: some repeats, mostly one, of one cell."""

    run: Run
    cell: PlannedCell
    repeats: tuple[int, ...]

    @property
    def settings(self) -> Settings:
        """The settings of a run of these repeats alone. A training's repeat is told by its seed."""
        settings, (first, *_) = self.run.settings, self.repeats
        changes: dict[str, Any] = {"methods": (self.cell.method,), "repeats": len(self.repeats)}
        if trains(settings):
            changes["seed"] = settings.seed + first
        else:
            changes["baseline"] = "none"  # it is a cell of the plan, with units of its own
        return settings.model_copy(update={**changes, "time_budget_s": None})


def trains(settings: Settings) -> bool:
    return "epochs" in type(settings).model_fields


def plan(points: Iterable[Point[Any]]) -> list[Run]:
    """The runs of ``points``, in their order.

    Raises:
        UsageError: two places of the matrix that differ in nothing but their names, or a folder that all trainings
            would write to.
    """
    groups: dict[str, list[tuple[Mapping[str, Any], Settings]]] = {}
    for point in points:
        settings = point.settings.resolved()
        _refuse_shared_folders(settings)
        groups.setdefault(same_run(settings.model_dump(mode="json")), []).append((point.axes, settings))
    runs = [_run(members) for members in groups.values()]
    ids = [cell.id for run in runs for cell in run.cells]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise UsageError(
            f"two cells of the matrix have the same name, {twice!r}",
            hint="give the matrix an axis that tells them apart",
        )
    return runs


def _refuse_shared_folders(settings: Settings) -> None:
    for key, instead in (
        ("checkpoint", "leave it out: a sweep keeps every finished training and goes on after it"),
        ("log_dir", "leave it out: the curves are in the result; netsim train logs steps"),
    ):
        if getattr(settings, key, None) is not None:
            raise UsageError(f"{key} is one folder, and a sweep has many trainings", hint=instead)


def _run(members: Sequence[tuple[Mapping[str, Any], Settings]]) -> Run:
    place = {
        key: value for key, value in _common([axes for axes, _ in members]).items() if key not in METHOD_AXES
    }
    methods: dict[str, MethodSpec] = {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for axes, settings in members:
        for method in settings.methods:
            methods.setdefault(method.id, method)
            found.setdefault(method.id, []).append(axes)
    settings = members[0][1].model_copy(update={"methods": tuple(methods.values())})
    label = ",".join(f"{key}={_short(value)}" for key, value in place.items())
    dumped = settings.model_dump(mode="json")
    cells = tuple(
        PlannedCell(
            id=f"{label}/{name}" if label else name,
            method=method,
            axes=_common(found[name]),
            identity=planned(dumped, name),
        )
        for name, method in methods.items()
    )
    return Run(label, place, settings, cells)


def _common(all_axes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The axes on which all agree: a dense cell stands at no ratio."""
    first, *others = all_axes
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(_short(each) for each in value)
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{_short(each)}" for key, each in value.items())
    return "".join(str(value).split())


def batches(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Runs whose links can stand at the same time."""
    batch: list[Run] = []
    links: dict[tuple[Any, str], int] = {}
    for run in runs:
        links[run.wanted] = run.settings.workers + 1
        if batch and sum(links.values()) > MAX_NAMESPACES:
            yield batch
            batch, links = [], {run.wanted: run.settings.workers + 1}
        batch.append(run)
    if batch:
        yield batch


def order(runs: Sequence[Run], missing: Mapping[str, Sequence[int]]) -> list[Unit]:
    """The missing repeats of all cells: the first of each, then the second of each backwards (ABBA), and so on, so
    that a drift of the machine's speed falls on all alike, and a sweep that is stopped has something of everything.

    Args:
        missing: by cell the numbers of its repeats.
    """
    queues = [
        (run, cell, _portions(run, missing[cell.id]))
        for run in runs
        for cell in run.cells
        if cell.id in missing
    ]
    units: list[Unit] = []
    for number in range(max((len(portions) for _, _, portions in queues), default=0)):
        lap = [Unit(run, cell, portions[number]) for run, cell, portions in queues if number < len(portions)]
        units += lap if number % 2 == 0 else reversed(lap)
    return units


def _portions(run: Run, numbers: Sequence[int]) -> list[tuple[int, ...]]:
    """One repeat at a time; all at once where a learning rate is tuned for all of them."""
    if getattr(run.settings, "tuned_rates", ()):
        return [tuple(numbers)] if numbers else []
    return [(number,) for number in numbers]
