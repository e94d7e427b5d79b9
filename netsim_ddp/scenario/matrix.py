"""A matrix of runs: a scenario in which some keys take several values, as a GitHub Actions matrix writes them.

::

    model: simple_cnn
    methods: [dense, topk]
    matrix:
      bandwidth: [10mbps, 100mbps]
      workers: [2, 4]
      exclude:
        - {bandwidth: 10mbps, workers: 4}
      include:
        - {bandwidth: 100mbps, compute: 50ms}      # into the combinations that it fits
        - {bandwidth: 1gbps, workers: 8}           # fits none: one more

Combinations come in the order of the file, the last axis changing fastest. ``exclude`` takes away what agrees with all
of its values. ``include`` is then carried out in order: its values are added to every combination of the axes of which
it changes no axis; where there is none it is a combination of its own. Pure: no file is read here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from netsim_ddp.errors import UsageError
from netsim_ddp.link.options import as_typed, with_profile
from netsim_ddp.names import suggest
from netsim_ddp.scenario.files import DESCRIPTION, validate_as, without_model
from netsim_ddp.scenario.settings import Settings
from netsim_ddp.units import parse_ratio

AnySettings = TypeVar("AnySettings", bound=Settings)

MAX_POINTS = 10_000
COMMANDS = ("run", "train", "predict")
"""What a file may be for."""
LISTS = ("methods", "slow_rank", "slow_ranks", "timeline", "timeline_changes")
"""Keys whose one value is a list already."""
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Matrix:
    """What a file says, as it is written. ``source`` names the file in errors."""

    source: str
    base: Values
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    include: tuple[Values, ...] = ()
    exclude: tuple[Values, ...] = ()
    title: str = ""
    question: str = ""
    command: str = "run"
    sets: frozenset[str] = frozenset()
    """Keys that were set on the command line."""

    @property
    def description(self) -> dict[str, str]:
        """Its title and its question, where it has them."""
        return {key: text for key in ("title", "question") if (text := getattr(self, key))}

    def to_json(self) -> dict[str, Any]:
        """What :func:`parse` reads."""
        lists = {"include": self.include, "exclude": self.exclude}
        matrix = {key: list(values) for key, values in self.axes.items()}
        matrix |= {key: [dict(each) for each in items] for key, items in lists.items() if items}
        return {
            **self.description,
            "command": self.command,
            **self.base,
            **({"matrix": matrix} if matrix else {}),
        }


@dataclass(frozen=True)
class Point(Generic[AnySettings]):
    """One combination: the values of its axes as written, and the settings that they make."""

    axes: Values
    settings: AnySettings


def parse(data: Any, source: str) -> Matrix:
    """Check the form of ``data``, a file's content.

    Raises:
        UsageError: not a mapping, or a matrix that is none. What the values are worth is :func:`expand`'s to say.
    """
    if not isinstance(data, Mapping):
        raise UsageError(
            f"{source} holds no scenario", hint="write keys such as 'bandwidth: 1gbps', one on a line"
        )
    for key in ("include", "exclude"):
        if key in data:
            raise UsageError(f"{source}: {key} stands outside of the matrix", hint="indent it below matrix:")
    command = str(data.get("command", "run"))
    if command not in COMMANDS:
        raise UsageError(
            f"{source}: command {command!r} is not known here", hint=f"choose from {', '.join(COMMANDS)}"
        )
    matrix = data.get("matrix", {})
    if not isinstance(matrix, Mapping):
        raise UsageError(
            f"{source}: matrix {matrix!r} has no axes",
            hint="write for example matrix: {bandwidth: [10mbps, 100mbps]}",
        )
    return Matrix(
        source=source,
        base={str(key): value for key, value in data.items() if key not in (*DESCRIPTION, "matrix")},
        axes={
            str(key): _axis(str(key), values, source)
            for key, values in matrix.items()
            if key not in ("include", "exclude")
        },
        include=_entries("include", matrix.get("include"), source),
        exclude=_entries("exclude", matrix.get("exclude"), source),
        title=str(data.get("title", "")),
        question=str(data.get("question", "")),
        command=command,
    )


def _axis(key: str, values: Any, source: str) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise UsageError(
            f"{source}: matrix: {key} {values!r} is not a list",
            hint=f"write {key}: [{values}], or {key}: {values} above the matrix",
        )
    if not values:
        raise UsageError(f"{source}: matrix: {key} has no values", hint=f"leave {key} away")
    for i, value in enumerate(values):
        if twin := next((other for other in values[:i] if same(key, other, value)), None):
            also = "" if str(twin) == str(value) else f": {twin!r} is the same"
            raise UsageError(f"{source}: matrix: {key} names {value!r} twice{also}", hint="name it once")
    return tuple(values)


def _entries(name: str, items: Any, source: str) -> tuple[Values, ...]:
    if items is None:
        return ()
    if not isinstance(items, list) or not all(isinstance(item, Mapping) and item for item in items):
        raise UsageError(
            f"{source}: {name} {items!r} is not a list of combinations",
            hint=f"write for example {name}: [{{bandwidth: 10mbps, workers: 4}}]",
        )
    return tuple({str(key): value for key, value in item.items()} for item in items)


def override(matrix: Matrix, settings: Values) -> Matrix:
    """``matrix`` with some keys set: an axis to the value or the list of values that is given, so that nothing else
    of it is left, and every other key to its value. A list makes an axis of a key that is none."""
    base, axes = without_model(matrix.base, settings), without_model(matrix.axes, settings)
    include = [without_model(each, settings) for each in matrix.include]
    for key, value in settings.items():
        if key in axes or (isinstance(value, list) and key not in LISTS):
            axes[key] = _axis(key, value if isinstance(value, list) else [value], "--set")
            base.pop(key, None)
            include = [
                each
                for each in include
                if key not in each or any(same(key, each[key], left) for left in axes[key])
            ]
        else:
            base[key] = value
            include = [{name: each[name] for name in each if name != key} for each in include]
    return replace(
        matrix,
        base=base,
        axes=axes,
        include=tuple(each for each in include if each),
        exclude=_still(matrix, axes),
        sets=matrix.sets | settings.keys(),
    )


def _still(matrix: Matrix, axes: Mapping[str, tuple[Any, ...]]) -> tuple[Values, ...]:
    """The exclusions that can still take something away: an axis that was set has lost values."""
    changed = {key for key in axes if axes[key] != matrix.axes.get(key)}
    return tuple(
        each
        for each in matrix.exclude
        if all(any(same(key, each[key], value) for value in axes[key]) for key in changed & each.keys())
    )


def combinations(matrix: Matrix) -> list[dict[str, Any]]:
    """Every combination, as written.

    Raises:
        UsageError: an exclusion that names no axis, or a value that its axis has not; too many combinations.
    """
    count = math.prod(len(values) for values in matrix.axes.values())
    if count > MAX_POINTS:
        raise UsageError(
            f"{matrix.source}: the matrix has {count} combinations", hint=f"{MAX_POINTS} are the most"
        )
    for each in matrix.exclude:
        for key, value in each.items():
            if key not in matrix.axes:
                raise UsageError(
                    f"{matrix.source}: exclude: {key!r} is not an axis",
                    hint=suggest(key, matrix.axes) if matrix.axes else "name an axis of the matrix",
                )
            if not any(same(key, value, other) for other in matrix.axes[key]):
                raise UsageError(
                    f"{matrix.source}: exclude: {key} has no value {value!r}",
                    hint=f"it has {', '.join(map(str, matrix.axes[key]))}",
                )
    product = itertools.product(*matrix.axes.values()) if matrix.axes else ()
    written = (dict(zip(matrix.axes, values, strict=True)) for values in product)
    originals = [each for each in written if not any(_agrees(each, out) for out in matrix.exclude)]
    found = [dict(each) for each in originals]
    more: list[dict[str, Any]] = []
    for entry in matrix.include:
        fits = [i for i, each in enumerate(originals) if _agrees(each, entry)]
        for i in fits:
            found[i] |= {key: value for key, value in entry.items() if key not in originals[i]}
        if not fits:
            more.append(dict(entry))
    for key in matrix.sets & matrix.axes.keys():  # an axis from the command line is everybody's
        more = [
            {key: value, **each} for each in more for value in ((None,) if key in each else matrix.axes[key])
        ]
    return found + more if matrix.axes or more else [{}]


def _agrees(each: Values, other: Values) -> bool:
    """Whether the two have the same value of every key that both have."""
    return all(same(key, each[key], value) for key, value in other.items() if key in each)


def same(key: str, one: Any, other: Any) -> bool:
    """Whether two values of ``key`` mean the same: ``1gbps`` and ``1000mbps`` do."""
    return bool(one == other or _meaning(key, one) == _meaning(key, other))


def _meaning(key: str, value: Any) -> Any:
    parse_as = Settings.spellings[key].parse if key in Settings.spellings else None
    try:
        if key == "ratio":
            return parse_ratio(value)
        if parse_as is not None and key not in ("trace", "timeline"):
            return parse_as(value, what=key)
    except UsageError:
        pass  # whoever reads it says so
    return str(value)


def expand(matrix: Matrix, kind: type[AnySettings]) -> list[Point[AnySettings]]:
    """Every combination with its settings.

    Raises:
        UsageError: with the file, the key and the value, as for a scenario; a matrix with nothing left in it.
    """
    known = kind.keys() | kind.model_fields.keys()
    for place, keys in (("matrix", matrix.axes), *(("include", each) for each in matrix.include)):
        for key in keys:
            if key not in known:
                where = "--set" if key in matrix.sets else f"{matrix.source}: {place}"
                raise UsageError(f"{where}: unknown key {key!r}", hint=suggest(key, kind.keys()))
    points = [Point(axes, _settings(matrix, axes, kind)) for axes in combinations(matrix)]
    if not points:
        raise UsageError(f"{matrix.source}: the matrix is empty: everything is excluded", hint="exclude less")
    return points


def _settings(matrix: Matrix, axes: Values, kind: type[AnySettings]) -> AnySettings:
    values = as_typed({**matrix.base, **axes})
    if "methods" in axes and isinstance(axes["methods"], Mapping):
        values["methods"] = [axes["methods"]]
    if isinstance(name := values.get("link_profile"), str):
        values = with_profile(values, name)
    return validate_as(kind, values, matrix.source, sets=matrix.sets & values.keys())


def parse_set(texts: Iterable[str], load: Callable[[str], Any]) -> dict[str, Any]:
    """``["steps=4", "workers=[2, 4]"]`` -> values, each read by ``load`` as a file's would be.

    Raises:
        UsageError: not KEY=VALUE, or a key twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key or not value.strip():
            raise UsageError(f"--set {text!r} is not KEY=VALUE", hint="write for example --set steps=4")
        if key in found:
            raise UsageError(f"--set gives {key!r} twice", hint=f"for several values write {key}=[A, B]")
        found[key] = load(value)
    return found
