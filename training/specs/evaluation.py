"""Recipe section of the evaluation job."""

from __future__ import annotations

from pydantic import Field

from training.specs.base import Spec


class EvaluationSection(Spec):
    """How a model is measured; `evaluation_sets` decides on what."""

    context: int = Field(512, gt=0, description="Tokens of context for held-out text.")
    max_new_tokens: int = Field(48, gt=0)
    batch: int = Field(32, gt=0)
