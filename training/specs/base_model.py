"""Recipe section of `base_model`: architecture and pretraining."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from training.specs.base import Spec
from training.specs.optimization import TrainingSection


class Phase(Spec):
    """One phase of the context-length curriculum."""

    context: int = Field(gt=0, description="Tokens per row.")
    share: float = Field(gt=0, le=1, description="Share of the steps.")


class BaseModelSection(TrainingSection):
    """Everything that decides the content of `base_model`."""

    architecture: dict[str, Any] = Field(
        description="Passed to `AutoConfig.for_model`: `model_type` and its fields. The vocabulary comes from the "
        "tokenizer. Another `model_type` inherits no field."
    )
    batch_tokens: int = Field(gt=0, description="Tokens per optimizer step, the same at every context length.")
    curriculum: tuple[Phase, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "model_type" not in self.architecture:
            raise ValueError("architecture needs a model_type, for example llama")
        if abs(sum(phase.share for phase in self.curriculum) - 1) > 1e-6:
            raise ValueError("the shares of the curriculum must add up to 1")
        for phase in self.curriculum:
            if self.batch_tokens % phase.context:
                raise ValueError(f"batch_tokens {self.batch_tokens} is not a multiple of context {phase.context}")
        return self
