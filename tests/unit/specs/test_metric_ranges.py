"""Between which values a metric lies: what the recipe check holds a threshold against."""

import math

import pytest

from training.specs import metric_ranges
from training.specs.metric_ranges import metric_range
from training.specs.metrics import METRICS, metrics_of


def test_only_metrics_that_exist_have_a_range() -> None:
    measured = {metric for metrics in METRICS.values() for metric in metrics}
    measured |= set(metrics_of("base_model", [], {}, is_mixed=True))
    assert set(metric_ranges._RANGES) <= measured


def test_every_rate_is_a_share() -> None:
    for asset, metrics in METRICS.items():
        for metric in metrics:
            if metric.endswith(("_rate", "_accuracy", "efficiency")):
                assert metric_range(asset, metric, 2048).is_share, metric


@pytest.mark.parametrize(
    ("asset", "metric", "task", "low", "high", "better"),
    [
        ("sft_model", "refusal_rate", "", 0, 1, 1),
        ("sft_model", "over_refusal_rate", "", 0, 1, -1),
        ("base_model", "loss_drop", "", -math.inf, math.log(2048), 1),
        ("sft_model", "loss_drop", "", -math.inf, math.inf, 1),
        ("base_model", "heldout_bits_per_byte__notes", "", 0, math.inf, -1),
        ("base_model", "heldout_perplexity", "", 1, math.inf, -1),
        ("corpus", "documents", "", 0, math.inf, 0),
        ("base_model", "arc", "acc_norm", 0, 1, 1),
        ("base_model", "ifeval", "prompt_level_strict_acc", 0, 1, 1),
        ("base_model", "gsm8k", "exact_match,flexible-extract", 0, 1, 1),
        ("base_model", "wikitext", "bits_per_byte", 0, math.inf, -1),
        ("base_model", "own", "something_else", -math.inf, math.inf, 0),
    ],
)
def test_ranges(asset: str, metric: str, task: str, low: float, high: float, better: int) -> None:
    span = metric_range(asset, metric, 2048, task)
    assert (span.low, span.high, span.better) == (low, high, better)
