"""`probe.json` of a model artifact: what the training engine's own model said just before it was saved."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from training.specs.base import Spec

PROBE_FILE = "probe.json"


class Probe(Spec):
    """Rows of training tokens, and how likely the live model found each next token.

    Attributes:
        rows: Token ids; each row begins anew, with nothing before it.
        logprobs: Per row, the natural logarithm of the probability of its second token and of every later one.
        fp8_overflows: FP8 products of the training's logged steps that were not finite.
        dropped_share: Share of the conversations or pairs that were longer than the context; None where there are none.
    """

    rows: tuple[tuple[int, ...], ...] = Field(min_length=1)
    logprobs: tuple[tuple[float, ...], ...]
    fp8_overflows: int = Field(0, ge=0)
    dropped_share: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _one_number_per_next_token(self) -> Self:
        lengths = [len(row) - 1 for row in self.rows]
        if min(lengths) < 1 or lengths != [len(row) for row in self.logprobs]:
            raise ValueError("each row needs one log-probability per token after its first")
        if min(min(row) for row in self.rows) < 0 or max(max(row) for row in self.logprobs) > 0:
            raise ValueError("token ids are not negative, and log-probabilities are not positive")
        return self
