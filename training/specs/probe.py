"""`probe.json` of a model artifact: log-probabilities and weights of the live model just before it was saved."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from training.specs.base import Spec

PROBE_FILE = "probe.json"
Logprobs = tuple[tuple[float, ...], ...]


class WeightSample(Spec):
    """Some elements of one tensor, as they were trained in float32.

    Attributes:
        name: The parameter's name in the plain architecture.
        indices: Places in the flattened tensor.
        values: The weights there.
    """

    name: str
    indices: tuple[int, ...] = Field(min_length=1)
    values: tuple[float, ...]

    @model_validator(mode="after")
    def _one_value_per_index(self) -> Self:
        if len(self.indices) != len(self.values) or min(self.indices) < 0:
            raise ValueError(f"{self.name} needs one value for each index")
        return self


class Probe(Spec):
    """Rows of training tokens with the live model's log-probabilities of them, and a sample of its weights.

    Attributes:
        rows: Token ids; each row is a context of its own.
        logprobs: Per row, the natural logarithm of the probability of its second token and of every later one, as the
            model computes in training precision.
        float32_logprobs: The same by the same weights in float32, which tells apart what bf16 or FP8 cannot.
        weights: A seeded sample of all weights.
        fp8_overflows: FP8 products of the training's logged steps that were not finite.
        dropped_share: Share of the conversations or pairs that were longer than the context; None for a base model.
    """

    rows: tuple[tuple[int, ...], ...] = Field(min_length=1)
    logprobs: Logprobs
    float32_logprobs: Logprobs = ()
    weights: tuple[WeightSample, ...] = ()
    fp8_overflows: int = Field(0, ge=0)
    dropped_share: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _one_number_per_next_token(self) -> Self:
        lengths = [len(row) - 1 for row in self.rows]
        for logprobs in (self.logprobs, *((self.float32_logprobs,) if self.float32_logprobs else ())):
            if min(lengths) < 1 or lengths != [len(row) for row in logprobs]:
                raise ValueError("each row needs one log-probability per token after its first")
            if max(max(row) for row in logprobs) > 0:
                raise ValueError("log-probabilities are not positive")
        if min(min(row) for row in self.rows) < 0:
            raise ValueError("token ids are not negative")
        return self
