"""Evidence: what an evaluation writes down, so that a judgement can be made of it again at any time.

An evaluation's folder holds `report.json` (an `EvaluationReport`) and `items.jsonl` (one object per item). A sampled
metric is a function of its items' sums, so its value, its interval and its comparison with another version's all follow
from `items.jsonl`; nothing has to be taken on trust from the report.
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
        """The metric for items whose scores and weights have these sums; NaN when there is no weight."""
        if not weight:
            return math.nan
        inner = self.offset + self.scale * score / weight
        if not self.exponential:
            return inner
        return math.exp(inner) if inner < 700 else math.inf


class Item(Spec):
    """One item behind a sampled metric; further keys of a line explain it and are not read by a judge."""

    metric: str
    id: str
    score: float
    weight: float = 1.0


class EvaluationReport(Spec):
    """`report.json`.

    Attributes:
        estimates: Metric to what was measured.
        missing: Metric to why it could not be measured, such as a task that ran past its time limit.
        causes: Metric to what most likely made it bad, such as the commonest reason to drop a document; a refusal ends
            with it.
    """

    estimates: dict[str, Estimate]
    missing: dict[str, str] = {}
    causes: dict[str, str] = {}

    @property
    def metrics(self) -> dict[str, float]:
        """Metric to its value."""
        return {name: estimate.value for name, estimate in self.estimates.items()}


def share(right: Sequence[bool]) -> Estimate:
    """The estimate of a share of items."""
    return Estimate(value=sum(right) / len(right), count=len(right), method="wilson")


def exact(value: float, count: int) -> Estimate:
    """The estimate of something that was counted over everything."""
    return Estimate(value=value, count=count, method="exact")
