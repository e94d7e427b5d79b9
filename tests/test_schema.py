"""``netsim schema``: what it prints fits what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.results.schema import KINDS, schema
from tests.commands import answer, complaint

ROOT = Path(__file__).parent.parent
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def misfits(value: Any, part: dict[str, Any], whole: dict[str, Any], where: str = "") -> list[str]:
    """Where ``value`` does not fit ``part`` of a schema: types, keys, choices; no more of JSON Schema than is used."""
    if "$ref" in part:
        part = whole["$defs"][part["$ref"].rpartition("/")[2]]
    if "anyOf" in part:
        found = [misfits(value, choice, whole, where) for choice in part["anyOf"]]
        return min(found, key=len)
    if "const" in part and value != part["const"]:
        return [f"{where}: {value!r} is not {part['const']!r}"]
    if "enum" in part and value not in part["enum"]:
        return [f"{where}: {value!r} is not in {part['enum']}"]
    if "type" in part and not isinstance(value, TYPES[part["type"]]):
        return [f"{where}: {value!r} is no {part['type']}"]
    problems = []
    if isinstance(value, list) and "items" in part:
        for i, item in enumerate(value):
            problems += misfits(item, part["items"], whole, f"{where}.{i}")
    if isinstance(value, dict) and "properties" in part:
        problems += [f"{where}: {key} is missing" for key in part.get("required", []) if key not in value]
        for key, item in value.items():
            if key in part["properties"]:
                problems += misfits(item, part["properties"][key], whole, f"{where}.{key}")
            elif part.get("additionalProperties") is False:
                problems.append(f"{where}: {key} is unknown")
    return problems


WRITTEN = [
    ("result", "tests/fixtures/result-v1.json"),
    ("result", "tests/fixtures/result-v2.json"),
    ("codec", "reports/compress.json"),
]


@pytest.mark.parametrize(("kind", "path"), WRITTEN)
def test_what_was_written_fits_the_schema(kind: str, path: str) -> None:
    document = json.loads((ROOT / path).read_text())
    whole = schema(kind)
    assert misfits(document, whole, whole) == []
    document["surprise"] = 1
    del document["tool"]
    document["command"] = 3
    assert len(misfits(document, whole, whole)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_versioned_name_and_descriptions(kind: str) -> None:
    found = schema(kind)
    version = KINDS[kind].model_fields["schema_version"].default
    assert found["$id"] == f"urn:netsim:{kind}:{version}"
    assert found["description"]
    assert all(part["type"] == "object" for part in found["$defs"].values())


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    done = answer(["schema"], tmp_path)
    assert done.returncode == 0
    printed = json.loads(done.stdout)
    assert printed["$id"] == "urn:netsim:result:4"
    assert "sweep" in printed["$defs"]["Cell"]["properties"]["axes"]["description"]
    assert complaint(["schema", "--kind", "results"], tmp_path) == (
        "--kind 'results' is not known here (did you mean 'result'? known: advice, codec, comparison, launch, probe, "
        "recording, result, validation)"
    )
