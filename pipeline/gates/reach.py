"""Gates that no version can pass, whatever is trained. A person hears of them before anything is spent.

What a metric can be, which way is better and how many items it is measured on are known from the recipe. A sampled
share passes by its bound, and the bound of n right items out of n lies below 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

from pipeline.recipes.loader import LoadedRecipe
from training.errors import RecipeError
from training.specs.gates import Gate
from training.specs.kinds import kind_of
from training.specs.metric_ranges import MetricRange, metric_range
from training.specs.metrics import sampled

_WRITTEN = {"refusal_rate": "harmful", "benign_answer_rate": "benign", "over_refusal_rate": "benign"}


def impassable_gates(loaded: LoadedRecipe) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The key and the message of every gate that cannot be passed."""
    recipe = loaded.recipe
    keys = {metric: key for task in recipe.evaluation_sets.tasks for metric, key in task.metrics.items()}
    items = _most_items(loaded)

    # The gates of an asset that the recipe does not have, inherited from one that has it, judge nothing.
    used = (
        (asset, gates) for asset, gates in recipe.gates.items() if asset in {*loaded.graph, *map(kind_of, loaded.graph)}
    )
    for asset, gates in used:
        for index, gate in enumerate(gates):
            span = metric_range(kind_of(asset), gate.metric, recipe.tokenizer.vocabulary, keys.get(gate.metric, ""))
            most = items.get(gate.metric) if sampled(kind_of(asset), gate.metric) else None
            problem = _out_of_range(gate, span) or _wrong_way(gate, span)
            if not problem and sampled(kind_of(asset), gate.metric):
                problem = _never_hit(gate, span) or _beyond_its_bound(gate, span, most)

            if problem:
                yield ("gates", asset, index, "threshold"), problem
            elif most is not None and gate.min_items > most:
                yield (
                    ("gates", asset, index, "min_items"),
                    (f"{gate.min_items} items are needed, and {gate.metric} is measured on {most} at most"),
                )


def _most_items(loaded: LoadedRecipe) -> dict[str, int]:
    """Metric to the most items that it can be measured on, where the recipe says so."""
    recipe = loaded.recipe
    most = {"preference_accuracy": recipe.evaluation_sets.preferences}
    most |= {
        metric: task.limit
        for task in recipe.evaluation_sets.tasks
        if task.limit and task.file is not None
        for metric in task.metrics
    }

    try:
        files = loaded.files("evaluation_sets")
        counts = {
            kind: sum(1 for line in files[kind].read_bytes().split(b"\n") if line.strip())
            for kind in set(_WRITTEN.values())
        }
    except (RecipeError, OSError):  # the check of the recipe's files says what is wrong
        return most
    return most | {metric: counts[kind] for metric, kind in _WRITTEN.items()}


def _out_of_range(gate: Gate, span: MetricRange) -> str:
    asked, low, high = gate.threshold, span.low, span.high
    impossible = {
        "<": asked <= low,
        "<=": asked < low,
        "==": not low <= asked <= high,
        ">=": asked > high,
        ">": asked >= high,
    }[gate.must_be]
    if not impossible:
        return ""

    between = (
        f"from {low:.4g} to {high:.4g}"
        if math.isfinite(low) and math.isfinite(high)
        else (f"at least {low:.4g}" if math.isfinite(low) else f"at most {high:.4g}")
    )
    percent = span.is_share and gate.better and 1 < asked <= 100
    return f"no version can pass {gate.asked}: {gate.metric} is {between}" + (
        f"; {asked:g} percent is {asked / 100:g}" if percent else ""
    )


def _wrong_way(gate: Gate, span: MetricRange) -> str:
    if not gate.better * span.better < 0:
        return ""
    less, more = ("less", "<=") if span.better < 0 else ("more", ">=")
    return f"{less} of {gate.metric} is better, and {gate.must_be} would refuse the better version; write {more}"


def _never_hit(gate: Gate, span: MetricRange) -> str:
    if gate.must_be != "==" or (span.is_share and gate.threshold in (0, 1)):
        return ""
    return f"a sampled metric is hardly ever {gate.threshold:g} exactly; ask for a bound, with >= or <="


def _beyond_its_bound(gate: Gate, span: MetricRange, most: int | None) -> str:
    """A share's Wilson bound of n out of n items is n / (n + z^2), and that of none z^2 / (n + z^2)."""
    if not span.is_share or not gate.better:
        return ""

    squared = NormalDist().inv_cdf(gate.confidence) ** 2
    best = most / (most + squared) if most else 1.0
    # Where less is better, the share that counts is what is left of 1.
    asked = gate.threshold if gate.better > 0 else 1 - gate.threshold
    if asked < best or (asked == best and most and gate.must_be in ("<=", ">=")):
        return ""

    never = f"no version can pass {gate.asked}: with {100 * gate.confidence:g}% confidence"
    if most is None:
        return f"{never} no number of items shows that; ask for a little less"
    side, reached = ("at least", best) if gate.better > 0 else ("at most", 1 - best)
    return f"{never} a perfect {gate.metric} over {most} items is {side} {reached:.4g}"
