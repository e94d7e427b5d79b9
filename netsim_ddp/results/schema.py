"""The JSON Schema of every kind of file that netsim writes, from the records that write and read them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from netsim_ddp.results.advice import Advice
from netsim_ddp.results.codec import CodecTimes
from netsim_ddp.results.comparison import Comparison
from netsim_ddp.results.launch import Launch
from netsim_ddp.results.probe import Probe
from netsim_ddp.results.record import Result
from netsim_ddp.results.recording import Recording
from netsim_ddp.results.validation import Validation

KINDS: Mapping[str, type[BaseModel]] = {
    "result": Result,
    "probe": Probe,
    "codec": CodecTimes,
    "launch": Launch,
    "comparison": Comparison,
    "recording": Recording,
    "validation": Validation,
    "advice": Advice,
}
"""By the name that ``netsim schema --kind`` takes."""


def schema(kind: str) -> dict[str, object]:
    """The schema of ``kind``, JSON Schema 2020-12; ``$id`` holds the newest version that files of it have."""
    record = KINDS[kind]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:netsim:{kind}:{record.model_fields['schema_version'].default}",
        **record.model_json_schema(),
    }
