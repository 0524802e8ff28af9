"""Gates: what a metric must be before an artifact is promoted."""

from __future__ import annotations

import math
import operator
from typing import Literal

from pydantic import Field

from training.specs.base import Spec

Comparison = Literal["<", "<=", "==", ">=", ">"]
_COMPARE = {"<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge, ">": operator.gt}


class Gate(Spec):
    """One condition on one metric of an evaluation report."""

    metric: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    must_be: Comparison
    threshold: float
    why: str = Field("", description="One sentence shown beside the verdict.")

    def judge(self, value: float | None) -> Verdict:
        """The verdict over a measured value; a missing or non-finite value fails."""
        if value is None:
            return self._verdict(None, False, f"{self.metric} is missing from the evaluation report")
        if not math.isfinite(value):
            return self._verdict(None, False, f"{self.metric} is {value}, which is not a number to judge")
        passed = bool(_COMPARE[self.must_be](value, self.threshold))
        word = "passes" if passed else "fails"
        return self._verdict(value, passed, f"{self.metric} {value:.6g} {word} {self.must_be} {self.threshold:g}")

    def _verdict(self, value: float | None, passed: bool, reason: str) -> Verdict:
        return Verdict(name=self.metric, passed=passed, value=value, must_be=self.must_be,
                       threshold=self.threshold, reason=reason)


class Verdict(Spec):
    """The outcome of one gate."""

    name: str
    passed: bool
    value: float | None
    must_be: Comparison
    threshold: float
    reason: str
