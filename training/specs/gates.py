"""Gates: conditions on metrics that an artifact meets before it is promoted, and their verdicts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.specs.base import Spec
from training.specs.evidence import Method

Comparison = Literal["<", "<=", "==", ">=", ">"]


class Gate(Spec):
    """One condition on one metric of an evaluation report.

    A sampled metric passes only when its confidence bound passes, not merely its value.
    """

    metric: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="What is judged; also the name of the check.")
    must_be: Comparison
    threshold: float
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Of the one-sided bound that is held against the threshold; unused for what is counted exactly.",
    )
    min_items: int = Field(30, gt=0, description="A sampled metric over fewer items fails as underpowered.")
    champion_margin: float | None = Field(
        None,
        ge=0,
        description="Beside the threshold: with this confidence, the "
        "version must not be worse than the promoted one by more than this, over "
        "the same items.",
    )
    why: str = Field("", description="One sentence shown beside the verdict.")

    @property
    def better(self) -> int:
        """1 when more is better, -1 when less is better, 0 for an equality."""
        return {"<": -1, "<=": -1, "==": 0, ">=": 1, ">": 1}[self.must_be]

    @property
    def asked(self) -> str:
        """The condition in words, such as `>= 1,000,000`."""
        return f"{self.must_be} {self.threshold:,.12g}"


class AgainstChampion(Spec):
    """A version compared with the champion over the same items."""

    version: str
    value: float
    worse_by: float = Field(description="By how much it is worse than the champion; negative when it is better.")
    worse_by_bound: float = Field(description="The upper confidence bound of that.")
    margin: float
    passed: bool


class Verdict(Spec):
    """The outcome of one gate."""

    name: str
    passed: bool
    value: float | None
    must_be: Comparison
    threshold: float
    reason: str
    confidence: float | None = Field(None, description="Of each bound of the interval; None where nothing was sampled.")
    interval: tuple[float, float] | None = None
    method: Method | None = None
    count: int = 0
    champion: AgainstChampion | None = None
