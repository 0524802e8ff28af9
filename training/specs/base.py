"""The base model of every spec, and the one canonical form that digests are taken of."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# A part of a path in the store, empty where it is not known yet. It cannot lead out of its folder.
Name = Annotated[str, Field(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]*)?$")]
# A function of a recipe's own code.
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# Seconds since the epoch, up to the year 9999, the last one that `datetime` can hold.
Moment = Annotated[float, Field(ge=0, lt=253_402_300_800)]


class Spec(BaseModel):
    """A frozen model that forbids unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity_fields(self) -> dict[str, Any]:
        """The fields that decide a result, as JSON-like values. Sections leave out fields that cannot change it."""
        return self.model_dump(mode="json")


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no white space; NaN and unknown types raise."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`, a JSON-like object or a `Spec`."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
