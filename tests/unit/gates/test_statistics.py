"""Bounds: against independent formulas, and against the coverage that they promise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pipeline.gates.statistics import interval, items_needed, wilson, worse_by_bound
from tests.unit.gates.worlds import ratio_of, ratios, share_of, shares
from training.specs.evidence import Estimate, Item


def items(rows: list[dict[str, object]]) -> list[Item]:
    return [Item.model_validate(row) for row in rows]


@given(
    st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
@settings(max_examples=60, deadline=None)
def test_wilson_is_the_score_test_turned_around(pair: tuple[int, int], confidence: float) -> None:
    right, count = pair
    low, high = wilson(right, count, confidence)
    z = norm.ppf(confidence)
    assert 0 <= low <= right / count <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(right / count - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / count), rel=1e-6)


@given(st.integers(0, 2**32), st.floats(-3, 3), st.floats(-2, 2).filter(lambda scale: abs(scale) > 0.1), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_bootstrap_is_a_percentile_of_resampled_items(
    seed: int, offset: float, scale: float, exponential: bool
) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.uniform(50, 200, 150)
    scores = weights * draw.normal(1.5, 0.3, 150)
    rows = ratios("m", scores.tolist(), weights.tolist())
    estimate = ratio_of(rows, offset=offset, scale=scale, exponential=exponential)
    low, high = interval(estimate, items(rows), 0.95, "m")

    values = []
    for _ in range(2000):
        chosen = draw.integers(0, 150, 150)
        values.append(estimate.of(float(scores[chosen].sum()), float(weights[chosen].sum())))
    by_hand = np.quantile(values, (0.05, 0.95))
    width = by_hand[1] - by_hand[0]
    assert low == pytest.approx(by_hand[0], abs=0.15 * width)
    assert high == pytest.approx(by_hand[1], abs=0.15 * width)


def test_bounds_stay_as_they_were_before_scipy_drew_them() -> None:
    draw = np.random.default_rng(5)
    weights = draw.uniform(50, 200, 275)
    rows = ratios("m", (weights * draw.normal(1.5, 0.3, 275)).tolist(), weights.tolist())
    champion = ratios("m", (weights * draw.normal(1.5, 0.3, 275)).tolist(), weights.tolist())
    bounds = interval(ratio_of(rows), items(rows), 0.95, "heldout_bits_per_byte")
    worse = worse_by_bound(ratio_of(rows), items(rows), ratio_of(champion), items(champion), -1, 0.95, "m")
    assert bounds == pytest.approx((1.4519933549611996, 1.5149072593116084), rel=1e-14)
    assert worse == pytest.approx(0.002507297151047628, rel=1e-12)


def test_one_item_is_its_own_bound() -> None:
    rows = ratios("m", [3.0], [2.0])
    assert interval(ratio_of(rows), items(rows), 0.95, "m") == (1.5, 1.5)
    assert worse_by_bound(ratio_of(rows), items(rows), ratio_of(rows), items(rows), -1, 0.95, "m") == 0


@pytest.mark.parametrize(("truth", "count"), [(0.5, 60), (0.8, 60), (0.95, 200)])
def test_wilson_covers(truth: float, count: int) -> None:
    draw = random.Random(1)
    above = below = 0
    trials = 1500
    for _ in range(trials):
        low, high = wilson(sum(draw.random() < truth for _ in range(count)), count, 0.95)
        above += low <= truth
        below += high >= truth
    # A one-sided Wilson bound is off by a few points for shares near one; it is never off by much.
    assert above / trials >= 0.92 and below / trials >= 0.92
    assert above + below < 2 * trials


@pytest.mark.parametrize("count", [60, 200])
def test_the_bootstrap_covers(count: int) -> None:
    draw = np.random.default_rng(2)
    above = below = 0
    trials = 300
    for _ in range(trials):
        weights = draw.integers(200, 3000, count).astype(float)
        rows = ratios("m", (weights * draw.gamma(9, 1 / 3, count)).tolist(), weights.tolist())
        low, high = interval(ratio_of(rows), items(rows), 0.95, "m")
        above += low <= 3.0
        below += high >= 3.0
    # With 300 trials the shares of misses scatter by a point and a half; a percentile bootstrap is a little narrow.
    assert 0.90 <= above / trials <= 0.99
    assert 0.90 <= below / trials <= 0.99


def test_a_comparison_covers_and_pairs_the_items() -> None:
    draw = np.random.default_rng(3)
    covered, widths, unpaired = 0, [], []
    for _ in range(200):
        base = draw.normal(2, 0.5, 100)
        rows = ratios("m", (base + draw.normal(0.05, 0.05, 100)).tolist(), [1.0] * 100)
        before = ratios("m", base.tolist(), [1.0] * 100)
        bound = worse_by_bound(ratio_of(rows), items(rows), ratio_of(before), items(before), -1, 0.95, "m")
        covered += bound >= 0.05
        widths.append(bound - 0.05)
        unpaired.append(interval(ratio_of(rows), items(rows), 0.95, "m")[1] - ratio_of(rows).value)
    assert covered / 200 >= 0.90
    assert np.mean(widths) < 0.3 * np.mean(unpaired)


@pytest.mark.parametrize("better", [1, -1])
def test_the_side_of_a_comparison(better: int) -> None:
    low, high = (items(shares("m", [number < right for number in range(100)])) for right in (50, 80))
    less, more = (share_of(shares("m", [n < right for n in range(100)])) for right in (50, 80))
    bound = worse_by_bound(less, low, more, high, better, 0.95, "m")
    assert bound > 0.3 if better > 0 else bound < -0.2


def test_the_same_items_give_the_same_bounds_in_any_order() -> None:
    rows = ratios("m", [float(n % 7) for n in range(50)], [1.0 + n % 3 for n in range(50)])
    estimate = ratio_of(rows)
    assert interval(estimate, items(rows), 0.95, "m") == interval(estimate, items(rows[::-1]), 0.95, "m")
    assert interval(estimate, items(rows), 0.95, "m") != interval(estimate, items(rows), 0.95, "other")


@pytest.mark.parametrize(("share", "threshold"), [(0.65, 0.6), (0.3, 0.35), (0.97, 0.95)])
def test_as_many_items_as_a_share_needs_are_enough_and_fewer_are_not(share: float, threshold: float) -> None:
    side = 0 if share > threshold else 1
    bound = wilson(round(share * 20), 20, 0.95)[side]
    needed = items_needed(Estimate(value=share, count=20, method="wilson"), bound, threshold, 0.95, 30)
    assert needed is not None
    enough, few = (
        wilson(round(share * count), count, 0.95)[side] for count in (round(needed * 1.2), round(needed * 0.8))
    )
    assert (enough > threshold) == (share > threshold)
    assert (few > threshold) != (share > threshold)


def test_as_many_items_as_a_ratio_needs_are_enough() -> None:
    draw = np.random.default_rng(4)
    found = {}
    for count in (40, 4000):
        rows = ratios("m", draw.normal(2, 1, count).tolist(), [1.0] * count)
        found[count] = (ratio_of(rows), interval(ratio_of(rows), items(rows), 0.95, "m")[0])
    estimate, bound = found[40]
    needed = items_needed(estimate, bound, estimate.value - 0.05, 0.95, 30)
    assert needed is not None and 600 < needed < 2000  # (1.645 / 0.05) squared is 1082
    assert found[4000][0].value - found[4000][1] < 0.05


@pytest.mark.parametrize("bound", [math.nan, -math.inf])
def test_no_number_of_items_helps_without_a_bound_or_a_distance(bound: float) -> None:
    estimate = Estimate(value=1.0, count=40, method="bootstrap")
    assert items_needed(estimate, bound, 0.5, 0.95, 30) is None
    assert items_needed(estimate, 0.9, 1.0, 0.95, 30) is None
    assert items_needed(estimate, 0.9, 0.95, 0.95, 30) == 160
