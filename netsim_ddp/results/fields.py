"""What the records of all files are made of: the strict base, bounded numbers, and who wrote a file."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from netsim_ddp.errors import UsageError
from netsim_ddp.reading import one_line

_Model = TypeVar("_Model", bound=BaseModel)

# A NaN among the times would turn into a median without anybody noticing; a NaN loss is a finding.
# Bounded too: what nobody can have measured must not overflow where it is added up or shown.
Seconds = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e18, le=1e18)]
Count = Annotated[int, Field(ge=-(10**18), le=10**18)]
Rate = Annotated[int, Field(gt=0, le=10**18)]
Positive = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e18)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Tool(Strict):
    name: str = "netsim"
    version: str


def validated(model: type[_Model], data: object, *, source: str, hint: str | None = None) -> _Model:
    """``data``, the decoded JSON of ``source``, as ``model``.

    Raises:
        UsageError: keys missing, unknown or of the wrong type; the message names the first.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = one_line(".".join(str(part) for part in first["loc"]))
        raise UsageError(f"{source}: {where}: {one_line(first['msg'])}", hint=hint) from error
