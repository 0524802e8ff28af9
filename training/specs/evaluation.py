"""Recipe section of the evaluation job."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from training.specs.base import Spec


class EvaluationSection(Spec):
    """How a model is measured; `evaluation_sets` decides on what."""

    context: int = Field(512, gt=0, description="Tokens of context for held-out text.")
    max_new_tokens: int = Field(48, gt=0)
    batch: int = Field(32, gt=0)
    packing_contexts: tuple[int, ...] = Field(
        (), description="Filled in for packed_shards, from its `contexts`: tokens per row that packing is measured for."
    )

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name != "packing_contexts" or value}
