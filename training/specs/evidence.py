"""Evidence: an evaluation's results, from which a judgement can be made again at any time.

An evaluation's folder holds `report.json` (an `EvaluationReport`) and `items.jsonl` (one object per item). A sampled
metric is a function of its items' sums. So its value, its interval and its comparison with another version all follow
from `items.jsonl`, and nobody has to trust the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from training.specs.base import Spec

Method = Literal["wilson", "bootstrap", "exact"]
REPORT_FILE = "report.json"
ITEMS_FILE = "items.jsonl"


class Estimate(Spec):
    """One measured metric.

    Its value is `offset + scale * r`, or `exp(offset + scale * r)`, where r is the sum of its items' `score` over the
    sum of their `weight`. An exact metric was counted over everything and has no items.
    """

    value: float
    count: int = Field(ge=0, description="Items it was measured on.")
    method: Method = Field(
        description="`wilson` for a share of right items, `bootstrap` for any other ratio, `exact` "
        "for what was counted and not sampled."
    )
    offset: float = 0.0
    scale: float = 1.0
    exponential: bool = False

    def of(self, score: float, weight: float) -> float:
        """The metric for items whose scores and weights have these sums; NaN when the weights sum to 0."""
        if not weight:
            return math.nan

        inner = self.offset + self.scale * score / weight
        if not self.exponential:
            return inner
        return math.exp(inner) if inner < 700 else math.inf  # above that, `exp` raises an OverflowError


class Item(Spec):
    """One item of a sampled metric. Further keys of its line explain it to people; no gate reads them."""

    metric: str
    id: str
    score: float
    weight: float = 1.0


class EvaluationReport(Spec):
    """`report.json`.

    Attributes:
        estimates: Metric to its estimate.
        missing: Metric to the reason why it could not be measured, such as a task that ran past its time limit.
        causes: Metric to the most likely cause of a bad value, such as the commonest reason to drop a document. A
            refusal ends with it.
    """

    estimates: dict[str, Estimate]
    missing: dict[str, str] = {}
    causes: dict[str, str] = {}

    @property
    def metrics(self) -> dict[str, float]:
        """Metric to its value."""
        return {name: estimate.value for name, estimate in self.estimates.items()}


def share(right: Sequence[bool]) -> Estimate:
    """The estimate of the share of items that are right; there is at least one item."""
    return Estimate(value=sum(right) / len(right), count=len(right), method="wilson")


def exact(value: float, count: int) -> Estimate:
    """The estimate of a metric that was counted over everything and not sampled."""
    return Estimate(value=value, count=count, method="exact")
