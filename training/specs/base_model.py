"""Recipe section of `base_model`: architecture and pretraining, or the model that is imported."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from training.specs.base import Spec
from training.specs.imports import Imported
from training.specs.optimization import Optimizer, TrainingSection

# Stands for none. A model that is imported as it is has no use for one, and every other section has to write its own.
_NO_OPTIMIZER = Optimizer(learning_rate=1.0, warmup_steps=0)
_EMPTY = {"curriculum": "the list needs at least 1 item", "architecture": "it is empty"}
_TRAINING = ("steps", "optimizer", "batch_tokens", "curriculum")


class Phase(Spec):
    """One phase of the context-length curriculum."""

    context: int = Field(gt=0, description="Tokens per row.")
    share: float = Field(gt=0, le=1, description="Share of the steps.")
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Weights of sources in this phase, such as of better text at the end; by default their own."
    )

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name != "weights" or value}


class BaseModelSection(Imported, TrainingSection):
    """Everything that decides the content of `base_model`.

    Without `from` the model begins with random weights and has an architecture. With `from` it has that of its origin.
    Without `steps` it is imported as it is, with them its pretraining is continued.
    """

    steps: int = Field(0, ge=0, description="Optimizer steps; with `from` none are needed.")
    optimizer: Optimizer = _NO_OPTIMIZER
    architecture: dict[str, Any] = Field(
        {},
        description="Passed to `AutoConfig.for_model`: `model_type` and its fields. The vocabulary comes from the "
        "tokenizer. Another `model_type` inherits no field.",
    )
    vocabulary_multiple: int = Field(
        1,
        ge=1,
        le=1024,
        description="The embedding gets rows without a token, up to a multiple of this: 64 or 128 fill the tiles of a "
        "GPU. The tokenizer stays as it is, and no text is ever written with such a row.",
    )
    batch_tokens: int = Field(0, ge=0, description="Tokens per optimizer step, the same at every context length.")
    curriculum: tuple[Phase, ...] = ()
    max_epochs: float | None = Field(
        None, gt=0, description="No source may be read more often than this; a plan that would is refused."
    )
    weights: dict[str, float] = Field({}, description="Filled in from the sources' weights.")

    def rows(self, tokens: int) -> int:
        """Rows of the embedding for a tokenizer's number of tokens."""
        return -(-tokens // self.vocabulary_multiple) * self.vocabulary_multiple

    @property
    def is_trained(self) -> bool:
        """Whether the stage trains: all but a model that is imported as it is."""
        return self.steps > 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = self._missing() or self._superfluous()
        if problems:
            raise ValueError("\n".join(problems))

        if self.is_trained and abs(sum(phase.share for phase in self.curriculum) - 1) > 1e-6:
            raise ValueError("the shares of the curriculum must add up to 1")
        for phase in self.curriculum:
            if self.batch_tokens % phase.context:
                raise ValueError(f"batch_tokens {self.batch_tokens} is not a multiple of context {phase.context}")
        return self

    def _missing(self) -> list[str]:
        """What a model that is trained here has not got."""
        needed = list(_TRAINING) if self.from_ is None or self.is_trained else []
        if self.from_ is None:
            needed.append("architecture")
        problems = []
        for name in needed:
            if name not in self.model_fields_set:
                about = type(self).model_fields[name].description
                problems.append(f"{name}: this key is missing" + (f": {about}" if about else ""))
            elif not getattr(self, name):
                problems.append(f"{name}: {_EMPTY.get(name, '0 is not allowed: it must be above 0')}")
        if self.from_ is None and self.architecture and "model_type" not in self.architecture:
            problems.append("architecture needs a model_type, for example llama")
        return problems

    def _superfluous(self) -> list[str]:
        """What a model that is imported has no use for."""
        if self.from_ is None:
            return []
        problems = []
        if self.architecture:
            problems.append("architecture: the model of `from` has its own; leave this out")
        if self.vocabulary_multiple != 1:
            problems.append("vocabulary_multiple: the model of `from` has its own rows; leave this out")
        if not self.is_trained:
            unused = [name for name in (*_TRAINING[1:], "max_epochs") if name in self.model_fields_set]
            problems += [f"{name}: nothing is trained without `steps`; add them, or leave this out" for name in unused]
        return problems

    def _unwritten(self) -> set[str]:
        unset: dict[str, Any] = {"max_epochs": None, "weights": {}, "vocabulary_multiple": 1}
        names = super()._unwritten() | {name for name, value in unset.items() if getattr(self, name) == value}
        if self.from_ is None:
            return names
        if self.is_trained:
            return names | {"architecture"}
        return names | (set(type(self).model_fields) - {"from_", "revision", "gguf"})
