"""How sure a sampled metric is: one-sided confidence bounds, and how many items a judgement would need.

A share of right items has a Wilson bound (Wilson, 1927). Any other metric is a ratio of sums over its items, and its
bound is a percentile of 2,000 resamples of the items (Efron, 1979). Two versions are compared by resampling the items
that both were measured on together. The same items give the same bounds, in whatever order they are: the resamples are
drawn from a seed that follows from the metric's name.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from training.specs.evidence import Estimate, Item

if TYPE_CHECKING:
    import numpy as np

    _Floats = np.ndarray[Any, np.dtype[np.float64]]

# numpy and scipy are imported by the functions that need them: the definitions load without.

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
    scores, weights = _columns(items)
    drawn = _resampled(name, ((scores, weights),))
    return _percentiles(_values(estimate, *drawn[0]), confidence)


def wilson(right: int, count: int, confidence: float) -> tuple[float, float]:
    """The score bounds of a share, each with this one-sided confidence."""
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(confidence_level=2 * confidence - 1, method="wilson")
    return float(found.low), float(found.high)


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
    import numpy as np

    own, theirs = _columns(items), _columns(champions)
    (scores, weights), (champion_scores, champion_weights) = _resampled(name, (own, theirs))
    with np.errstate(all="ignore"):
        worse = better * (_values(champion, champion_scores, champion_weights) - _values(estimate, scores, weights))
        return float(np.quantile(worse, confidence))


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
        wanted = NormalDist().inv_cdf(confidence) ** 2 * threshold * (1 - threshold) / gap**2
    else:
        wanted = estimate.count * ((estimate.value - bound) / gap) ** 2
    return max(min_items, estimate.count + 1, math.ceil(wanted)) if wanted < 1e12 else None


def right_needed(count: int, passes: Callable[[float], bool], better: int, confidence: float) -> int | None:
    """How many of so many items must count for the bound of their share to pass; None when not even all or none do.

    Args:
        passes: Whether a bound passes.
        better: 1 for the fewest items that pass, -1 for the most.
    """
    side = 0 if better > 0 else 1
    enough = range(count + 1) if better > 0 else range(count, -1, -1)
    at = bisect_left(enough, True, key=lambda right: passes(wilson(right, count, confidence)[side]))
    return enough[at] if at <= count else None


def _columns(items: Sequence[Item]) -> tuple[_Floats, _Floats]:
    import numpy as np

    ordered = sorted(items, key=lambda item: item.id)
    return (
        np.array([item.score for item in ordered], dtype=np.float64),
        np.array([item.weight for item in ordered], dtype=np.float64),
    )


def _resampled(name: str, versions: Sequence[tuple[_Floats, _Floats]]) -> list[tuple[_Floats, _Floats]]:
    """Sums of scores and of weights over resampled items; the versions share every draw."""
    import numpy as np

    count = len(versions[0][0])
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
    sums: list[tuple[_Floats, _Floats]] = [(np.empty(RESAMPLES), np.empty(RESAMPLES)) for _ in versions]
    step = max(1, _CELLS // count)
    for start in range(0, RESAMPLES, step):
        drawn = generator.integers(0, count, (min(step, RESAMPLES - start), count))
        for (scores, weights), (score_sums, weight_sums) in zip(versions, sums, strict=True):
            score_sums[start : start + step] = scores[drawn].sum(axis=1)
            weight_sums[start : start + step] = weights[drawn].sum(axis=1)
    return sums


def _values(estimate: Estimate, scores: _Floats, weights: _Floats) -> _Floats:
    """`Estimate.of` for many sums at once."""
    import numpy as np

    with np.errstate(all="ignore"):
        inner = estimate.offset + estimate.scale * scores / weights
        return np.asarray(np.exp(inner) if estimate.exponential else inner)


def _percentiles(values: _Floats, confidence: float) -> tuple[float, float]:
    import numpy as np

    with np.errstate(all="ignore"):
        low, high = np.quantile(values, (1 - confidence, confidence))
    return float(low), float(high)
