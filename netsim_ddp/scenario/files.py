"""Settings from flags, a YAML file or a result file: precedence is CLI > file > default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

import netsim_ddp
from netsim_ddp import reading
from netsim_ddp.errors import UsageError
from netsim_ddp.link.options import SPELLINGS, as_typed, with_profile, without_link
from netsim_ddp.methods import entry_of
from netsim_ddp.names import SMALL_SUFFIX, names_a_loss, suggest
from netsim_ddp.origin import Origin
from netsim_ddp.scenario.settings import ADAM_DENSE_BELOW, LEARNING_RATES, Settings
from netsim_ddp.scenario.steps import RECORDED_KEYS, Scenario
from netsim_ddp.scenario.train import LINK_KEYS

DERIVED: Mapping[str, tuple[str, ...]] = {
    "model": ("dataset",),
    "codec_from": ("execution",),
    "recording": (*RECORDED_KEYS, "execution"),
    "workers": ("threads", "execution"),
    "seed": ("tune_seed",),
}
"""The values of a result file that followed from another one, by the flag that changes that."""
AnySettings = TypeVar("AnySettings", bound=Settings)

SUFFIXES = (".yaml", ".yml", ".json")

DESCRIPTION = ("title", "question", "command")
"""Keys of a file that describe it and set nothing; ``command`` is the netsim command that the file is for."""


def build_scenario(overrides: Mapping[str, Any], config: Path | None = None) -> Scenario:
    """:func:`build` for ``netsim run``."""
    return build(Scenario, overrides, config)


def build(kind: type[AnySettings], overrides: Mapping[str, Any], config: Path | None = None) -> AnySettings:
    """Settings from a file, a built-in scenario's name (or None) and the flags that were given, which win.

    Raises:
        UsageError: an unreadable file, an unknown key, a value out of range.
    """
    values = _read(find(str(config)), overrides) if config is not None else {}
    values = without_model(values, overrides)
    if name := overrides.get("link_profile"):
        # A profile that is a flag replaces the file's whole link; the other flags replace what it says.
        values = with_profile(without_link(values), str(name))
    for key, value in overrides.items():
        if key in kind.spellings:
            fields = kind.spellings[key].fields
            others = (
                name
                for name, each in kind.spellings.items()
                if fields == each.fields and name not in overrides
            )
            for name in (*fields, *others):
                values.pop(name, None)
        values[key] = value
    return validate_as(kind, values, str(config) if config else None, flags=frozenset(overrides))


def without_model(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a file without what it trains, where a recording is given in place of that; and without its
    recording where a model is."""
    gone = (
        RECORDED_KEYS
        if "recording" in overrides
        else ("recording", "scale_compute")
        if "model" in overrides
        else ()
    )
    return {key: value for key, value in values.items() if key not in gone}


def with_loss_function(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """``flags`` where ``--loss my_module:loss`` is ``--loss-function``, and ``--loss 0.1%`` the link's, as ever.

    Raises:
        UsageError: both name a function.
    """
    if not names_a_loss(flags.get("loss")):
        return flags
    if "loss_function" in flags:
        raise UsageError("--loss and --loss-function both name a loss", hint="keep --loss-function")
    return {key: value for key, value in flags.items() if key != "loss"} | {"loss_function": flags["loss"]}


def validate(values: Mapping[str, Any], *, source: str | None = None) -> Scenario:
    """Check ``values``; every failure is one :class:`UsageError` that names its key."""
    return validate_as(Scenario, values, source)


def validate_as(
    kind: type[AnySettings],
    values: Mapping[str, Any],
    source: str | None,
    *,
    sets: frozenset[str] = frozenset(),
    flags: frozenset[str] = frozenset(),
) -> AnySettings:
    """:func:`validate` for any settings; ``sets`` are the keys that came with ``--set``, ``flags`` those that are
    flags."""
    quantities = {name: spelling.fields[0] for name, spelling in kind.spellings.items()}
    examples = {key: str(each.default) for key, each in kind.model_fields.items()} | dict(kind.examples)
    origin = Origin(values, flags, source, quantities, examples, sets)
    try:
        return kind.model_validate(dict(values), context=origin)
    except ValidationError as error:
        raise origin.explain(error) from None


def as_written(config: Path, key: str) -> Any:
    """What a scenario's file, or a result's, says of ``key``, unchecked; None where it says nothing.

    Raises:
        UsageError: as :func:`build`, of the file.
    """
    return _read(find(str(config)), {}).get(key)


def read_text(path: Path) -> Any:
    """What ``path`` holds, YAML or JSON, parsed.

    Raises:
        UsageError: unreadable, not text, or neither YAML nor JSON.
    """
    hint = "name a scenario in YAML or a result file"
    text = reading.read_text(path, hint=hint)
    # JSON is YAML too, but yaml takes seconds for a result file of a few hundred steps.
    if text.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return reading.parse_json(text, source=str(path), hint=hint)
    return reading.parse_yaml(text, source=str(path), hint=hint)


def _read(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    data = read_text(path)
    said = data.get("scenario", data) if isinstance(data, dict) else None
    if isinstance(said, dict) and ("matrix" in said or "sweep" in said):
        raise UsageError(f"{path} is a matrix of runs", hint=f"netsim sweep {path}")
    replayed = isinstance(data, dict) and "schema_version" in data  # everything in it is resolved
    if replayed:
        data = data.get("scenario")
        if isinstance(data, dict):
            _derive_again(data, overrides)
    if not isinstance(data, dict):
        raise UsageError(
            f"{path} holds no scenario", hint="write keys such as 'bandwidth: 1gbps', one on a line"
        )
    values = {str(key): value for key, value in data.items() if key not in DESCRIPTION}
    if not replayed:
        values = as_typed(values)
        if isinstance(name := values.get("link_profile"), str):
            values = with_profile(values, name)
    return values


def _derive_again(data: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """A result file holds resolved values. Those that followed from a value which a flag now changes must follow
    the flag, or ``--config result.json --ratio 0.05`` would run at the old ratio."""
    was_on = data.get("overlap") == "on" or (
        (data.get("compute_s") is not None or data.get("recording") is not None)
        and data.get("overlap") != "off"
    )
    derived = {"ratio": ("ratio", data.get("ratio")), "overlap": ("overlap", True if was_on else None)}
    if "epochs" in data:  # a training's
        derived["momentum"] = ("momentum", data.get("momentum"))
    if data.get("optimizer", "sgd") != "sgd":
        derived["optimizer"] = ("dense_below", ADAM_DENSE_BELOW)
    if "optimizer" in data:
        rate = LEARNING_RATES.get(str(data["optimizer"]))
        if "optimizer" in overrides and data.get("learning_rate") == rate:
            data.pop("learning_rate", None)
        if "epochs" in overrides and data.get("step_epochs") == max(1, int(data.get("epochs", 1)) // 3):
            data.pop("step_epochs")
        if data.get("link") == "none" and overrides.keys() & {*LINK_KEYS, *SPELLINGS}:
            data.pop("link")
    methods = data.get("methods")
    for method in methods if isinstance(methods, list) else []:
        params = method.get("params") if isinstance(method, dict) else None
        for flag in derived.keys() & overrides.keys():
            option, followed = derived[flag]
            if (
                isinstance(params, dict)
                and not entry_of(str(method.get("name"))).is_baseline
                and params.get(option) == followed
            ):
                params.pop(option, None)
    if "dataset" in overrides and "model" not in overrides and isinstance(model := data.get("model"), str):
        data["model"] = model.removesuffix(SMALL_SUFFIX)
    for option in overrides:
        for derived_key in DERIVED.get(option, ()):
            data.pop(derived_key, None)


def built_in() -> dict[str, Path]:
    """Every built-in scenario's file by its name, alphabetically: in a wheel inside the package, in a checkout beside
    it."""
    package = Path(netsim_ddp.__file__).parent
    folders = (parent / "scenarios" for parent in (package, package.parent))
    folder = next((folder for folder in folders if (folder / "quick.yaml").is_file()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file that ``name`` stands for: a path, or the name of a built-in scenario.

    Raises:
        UsageError: neither.
    """
    path = Path(name)
    if path.suffix.lower() in SUFFIXES or path.is_file() or path.name != name:
        return path
    known = built_in()
    if name not in known:
        raise UsageError(
            f"scenario {name!r} is not known",
            hint=suggest(name, known) if known else "write the path of a file in YAML",
        )
    return known[name]
