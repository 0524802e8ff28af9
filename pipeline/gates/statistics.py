"""How sure a sampled metric is: one-sided confidence bounds, and how many items a judgement would need.

A share of right items has a Wilson bound (Wilson, 1927). Any other metric is a ratio of sums over its items. Its bound
is a percentile of 2,000 resamples of the items (Efron, 1979). To compare two versions, the items that both were
measured on are resampled in pairs. scipy computes both kinds of bounds.

The same items give the same bounds, in whatever order they are: the seed of the resamples follows from the metric's
name.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from training.specs.evidence import Estimate, Item

if TYPE_CHECKING:
    import numpy as np

    _Floats = np.ndarray[Any, np.dtype[np.float64]]

# `import scipy.stats` takes 0.6 seconds, so only the functions that need numpy and scipy import them. Loading the
# definitions and `gatehouse status` do without.

RESAMPLES = 2000
_CELLS = 1_000_000
"""Drawn indices held in memory at a time."""


def interval(estimate: Estimate, items: Sequence[Item], confidence: float, name: str) -> tuple[float, float]:
    """The bounds of a sampled metric, each with this one-sided confidence.

    Args:
        items: Those that the estimate was measured on.
        confidence: Of each bound: the value lies above the lower one, and below the upper one, with it.
        name: The metric's name, which the resamples are drawn from.

    Returns:
        Lower and upper bound; infinite or NaN where the items do not bound it.
    """
    if estimate.method == "wilson":
        return wilson(round(sum(item.score for item in items)), len(items), confidence)

    def statistic(scores: _Floats, weights: _Floats, axis: int = -1) -> _Floats:
        return _values(estimate, scores.sum(axis), weights.sum(axis))

    # A two-sided interval that leaves `1 - confidence` out on each side.
    return _percentile_bounds(name, _columns(items), statistic, 2 * confidence - 1, "two-sided")


def wilson(right: int, count: int, confidence: float) -> tuple[float, float]:
    """The score bounds of a share, each with this one-sided confidence."""
    from scipy.stats import binomtest

    bounds = binomtest(right, count).proportion_ci(confidence_level=2 * confidence - 1, method="wilson")
    return float(bounds.low), float(bounds.high)


def worse_by_bound(
    estimate: Estimate,
    items: Sequence[Item],
    champion: Estimate,
    champions: Sequence[Item],
    better: int,
    confidence: float,
    name: str,
) -> float:
    """The upper bound of how much worse a version is than the champion, with this one-sided confidence.

    Args:
        items: The version's.
        champions: The champion's, of the same ids.
        better: 1 when more is better, -1 when less is.
    """

    def statistic(
        scores: _Floats, weights: _Floats, champion_scores: _Floats, champion_weights: _Floats, axis: int = -1
    ) -> _Floats:
        value = _values(estimate, scores.sum(axis), weights.sum(axis))
        return better * (_values(champion, champion_scores.sum(axis), champion_weights.sum(axis)) - value)

    columns = (*_columns(items), *_columns(champions))
    return _percentile_bounds(name, columns, statistic, confidence, "less")[1]


def items_needed(estimate: Estimate, bound: float, threshold: float, confidence: float, min_items: int) -> int | None:
    """About how many items would show that the metric passes, if its value stayed as it is.

    For a share, the number at which Wilson's bound reaches the threshold. For another ratio it follows from the bound's
    distance to the value, which shrinks with the square root of the number of items.

    Args:
        bound: The one that is held against the threshold.

    Returns:
        None when no number would do: the value is the threshold itself, or has no finite bound.
    """
    gap = abs(estimate.value - threshold)
    if not gap or not math.isfinite(bound):
        return None

    if estimate.method == "wilson":
        # Wilson's interval inverts the score test, whose standard error is that of the threshold.
        needed = NormalDist().inv_cdf(confidence) ** 2 * threshold * (1 - threshold) / gap**2
    else:
        needed = estimate.count * ((estimate.value - bound) / gap) ** 2

    return max(min_items, estimate.count + 1, math.ceil(needed)) if needed < 1e12 else None


def right_needed(count: int, passes: Callable[[float], bool], better: int, confidence: float) -> int | None:
    """How many of so many items must count for the bound of their share to pass; None when not even all or none do.

    Args:
        passes: Whether a bound passes.
        better: 1 for the fewest items that pass, -1 for the most.
    """
    side = 0 if better > 0 else 1
    # In this order the bounds first fail and then pass, so bisection finds the first that passes.
    candidates = range(count + 1) if better > 0 else range(count, -1, -1)
    first = bisect_left(candidates, True, key=lambda right: passes(wilson(right, count, confidence)[side]))
    return candidates[first] if first <= count else None


def _columns(items: Sequence[Item]) -> tuple[_Floats, _Floats]:
    import numpy as np

    ordered = sorted(items, key=lambda item: item.id)
    return (
        np.array([item.score for item in ordered], dtype=np.float64),
        np.array([item.weight for item in ordered], dtype=np.float64),
    )


def _percentile_bounds(
    name: str, columns: Sequence[_Floats], statistic: Callable[..., _Floats], confidence: float, alternative: str
) -> tuple[float, float]:
    """The percentile bounds of a statistic of items. A draw takes an item's values from all columns."""
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    count = len(columns[0])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # a bound that is NaN is the judge's to refuse
        if count < 2:  # scipy refuses a single item, and every resample of it is the item itself
            value = float(statistic(*columns))
            return value, value

        bounds = bootstrap(
            columns,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, _CELLS // count),
            confidence_level=confidence,
            alternative=alternative,
            method="percentile",
            rng=np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])),
        ).confidence_interval
    return float(bounds.low), float(bounds.high)


def _values(estimate: Estimate, scores: _Floats, weights: _Floats) -> _Floats:
    """`Estimate.of` for many sums at once."""
    import numpy as np

    inner = estimate.offset + estimate.scale * scores / weights
    return np.asarray(np.exp(inner) if estimate.exponential else inner)
