"""Recipe section of `base_model`: architecture and pretraining, or the model that is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Self, TypeGuard

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from training.specs.base import Spec
from training.specs.imports import Imported
from training.specs.optimization import Optimizer, TrainingSection

# Stands for none. A model that is imported as it is has no use for one, and every other section has to write its own.
_NO_OPTIMIZER = Optimizer(learning_rate=1.0, warmup_steps=0)
_EMPTY = {"curriculum": "the list needs at least 1 item", "architecture": "it is empty"}
_TRAINING = ("optimizer", "batch_tokens", "curriculum")
BUDGETS = ("steps", "tokens", "tokens_per_parameter")
"""The keys that say how long a training is; a recipe has one of them."""
Shares = dict[str, Annotated[float, Field(ge=0, le=1)]]


class Phase(Spec):
    """One phase of the context-length curriculum."""

    context: int = Field(gt=0, description="Tokens per row.")
    share: float = Field(gt=0, le=1, description="Share of the steps.")
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Weights of sources in this phase, such as of better text at the end; by default their own."
    )
    mixture: Shares = Field({}, description="In place of weights: the share of each source in this phase's tokens.")

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name not in ("weights", "mixture") or value}


class BaseModelSection(Imported, TrainingSection):
    """Everything that decides the content of `base_model`.

    Without `from` the model begins with random weights and has an architecture. With `from` it has that of its origin.
    Without a budget it is imported as it is, with one its pretraining is continued.

    `tokens` become `steps` when the section is read, so that two ways to write one budget are one identity.
    `tokens_per_parameter` become steps in the job, because only a built model has a number of parameters.
    """

    steps: int = Field(
        0,
        ge=0,
        description="Optimizer steps. `tokens` or `tokens_per_parameter` may stand in their place; with `from` none is "
        "needed.",
    )
    tokens: float | None = Field(
        None, gt=0, description="In place of steps: train on at least so many tokens, in whole steps of `batch_tokens`."
    )
    tokens_per_parameter: float | None = Field(
        None,
        gt=0,
        description="In place of steps: train on at least so many tokens for each parameter, tied ones counted once. "
        "Hoffmann et al. (2022) find 20.",
    )
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
    mixture: Shares = Field(
        {},
        description="Share of each source in the tokens that are read, in place of the sources' weights: every source "
        "by name, 0 for one that is not read.",
    )
    weights: dict[str, float] = Field({}, description="Filled in from the sources' weights.")

    def rows(self, tokens: int) -> int:
        """Rows of the embedding for a tokenizer's number of tokens."""
        return -(-tokens // self.vocabulary_multiple) * self.vocabulary_multiple

    @property
    def is_trained(self) -> bool:
        """Whether the stage trains: all but a model that is imported as it is."""
        return any(getattr(self, name) for name in BUDGETS)

    @model_validator(mode="before")
    @classmethod
    def _tokens_are_steps(cls, values: Any) -> Any:
        """Steps for tokens, where nothing else is wrong with them: their own checks find that."""
        if not isinstance(values, dict) or [name for name in BUDGETS if name in values] != ["tokens"]:
            return values
        tokens, batch = values["tokens"], values.get("batch_tokens")
        if not _is_positive(tokens) or not _is_positive(batch):
            return values
        rest = {name: value for name, value in values.items() if name != "tokens"}
        return rest | {"steps": _steps(tokens, batch)}

    def with_steps(self, parameters: int) -> Self:
        """The section with its steps, where these follow from the model.

        Args:
            parameters: Of the built model, tied ones counted once.

        Raises:
            ValueError: So many steps do not go with the rest of the section, such as with `warmup_steps`.
        """
        if self.tokens_per_parameter is None:
            return self
        steps = _steps(self.tokens_per_parameter * parameters, self.batch_tokens)
        try:
            return type(self).model_validate(self.model_dump(exclude={"tokens_per_parameter"}) | {"steps": steps})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            budget = f"{self.tokens_per_parameter:g} tokens for each of {parameters:,} parameters are {steps:,} steps"
            raise ValueError(f"{budget}: {reason}") from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = self._missing() or self._superfluous()
        if problems:
            raise ValueError("\n".join(problems))

        if self.is_trained and abs(sum(phase.share for phase in self.curriculum) - 1) > 1e-6:
            raise ValueError("the shares of the curriculum must add up to 1")
        problems = list(self._mixture_problems())
        if problems:
            raise ValueError("\n".join(problems))
        for phase in self.curriculum:
            if self.batch_tokens % phase.context:
                raise ValueError(f"batch_tokens {self.batch_tokens} is not a multiple of context {phase.context}")
        return self

    def _missing(self) -> list[str]:
        """What a model that is trained here has not got."""
        given = [name for name in BUDGETS if name in self.model_fields_set and getattr(self, name) is not None]
        if len(given) > 1:
            return [f"{name}: the budget is given by {' and '.join(given)}; keep one of them" for name in given[1:]]

        needed = list(_TRAINING) if self.from_ is None or self.is_trained else []
        if self.from_ is None:
            needed = [*(["steps"] if given in ([], ["steps"]) else []), *needed, "architecture"]
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

    def _mixture_problems(self) -> Iterator[str]:
        """Shares that add up to something else than all tokens, or stand beside weights."""
        written = {"mixture": self.mixture}
        written |= {f"curriculum[{number}].mixture": phase.mixture for number, phase in enumerate(self.curriculum)}
        for key, shares in written.items():
            if shares and abs(sum(shares.values()) - 1) > 1e-6:
                yield f"{key}: the shares add up to {sum(shares.values()):g}, and they must add up to 1"
        for number, phase in enumerate(self.curriculum):
            if phase.weights and (phase.mixture or self.mixture):
                yield f"curriculum[{number}].weights: a mixture gives the shares; write this phase's as `mixture`"

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
            unused = [name for name in (*_TRAINING, "max_epochs", "mixture") if name in self.model_fields_set]
            problems += [f"{name}: nothing is trained without `steps`; add them, or leave this out" for name in unused]
        return problems

    def _unwritten(self) -> set[str]:
        optional = ("max_epochs", "weights", "mixture", "tokens", "tokens_per_parameter")
        names = super()._unwritten() | {name for name in optional if getattr(self, name) in (None, {})}
        if self.vocabulary_multiple == 1:
            names.add("vocabulary_multiple")
        if self.tokens_per_parameter is not None:
            names.add("steps")
        if self.from_ is None:
            return names
        if self.is_trained:
            return names | {"architecture"}
        return names | (set(type(self).model_fields) - {"from_", "revision", "gguf"})


def budget_in_words(section: BaseModelSection, parameters: int) -> str:
    """How long a training is, for people.

    Args:
        section: Of a model that is trained.
        parameters: Of the model; 0 where they are not known.
    """
    if not parameters and not section.steps:
        return f"{section.tokens_per_parameter:g} tokens for each parameter, in steps of {section.batch_tokens:,}"

    steps = section.with_steps(parameters).steps
    tokens = steps * section.batch_tokens
    share = f", {tokens / parameters:.3g} for each of {parameters:,} parameters" if parameters else ""
    return f"{steps:,} steps of {section.batch_tokens:,} tokens: {tokens:,} tokens{share}"


def _is_positive(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _steps(tokens: float, batch_tokens: float) -> int:
    """Steps that hold at least so many tokens."""
    return math.ceil(tokens / batch_tokens)
