"""Learning rates."""

import pytest

from training.engine.schedule import rate_factor
from training.specs.optimization import Optimizer


def test_warm_up_rises_to_the_peak_and_cosine_falls_to_the_share() -> None:
    optimizer = Optimizer(learning_rate=1.0, warmup_steps=4, final_share=0.1)
    factors = [rate_factor(optimizer, 20, step) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[-1] == pytest.approx(0.1)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert rate_factor(optimizer, 20, 20) == pytest.approx(0.1)


def test_linear_and_constant() -> None:
    linear = Optimizer(learning_rate=1.0, warmup_steps=0, schedule="linear", final_share=0.0)
    assert [rate_factor(linear, 5, step) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    constant = Optimizer(learning_rate=1.0, warmup_steps=1, schedule="constant")
    assert [rate_factor(constant, 5, step) for step in (0, 1, 4)] == [0.5, 1.0, 1.0]


def test_a_run_shorter_than_its_warm_up() -> None:
    optimizer = Optimizer(learning_rate=1.0, warmup_steps=10)
    assert rate_factor(optimizer, 3, 2) < 1
    assert 0 < rate_factor(optimizer, 3, 10) <= 1
