"""How long a base model trains: by steps, tokens, or tokens for each parameter."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.specs.base_model import BaseModelSection, budget_in_words

SECTION: dict[str, Any] = {
    "architecture": {"model_type": "llama"},
    "batch_tokens": 2048,
    "curriculum": [{"context": 128, "share": 1.0}],
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 10},
}


def section(**budget: Any) -> BaseModelSection:
    return BaseModelSection.model_validate(SECTION | budget)


def test_tokens_are_steps_and_one_identity() -> None:
    assert section(tokens=3_072_000) == section(steps=1500)
    assert section(tokens=3.072e6).identity_fields() == section(steps=1500).identity_fields()
    assert section(tokens=3_072_001).steps == 1501


def test_tokens_per_parameter_wait_for_the_model() -> None:
    waiting = section(tokens_per_parameter=20)
    assert (waiting.steps, waiting.is_trained) == (0, True)
    assert "steps" not in waiting.identity_fields()
    assert waiting.identity_fields()["tokens_per_parameter"] == 20
    assert BaseModelSection.model_validate(waiting.model_dump(mode="json")) == waiting
    assert waiting.with_steps(100_000) == section(steps=977)
    assert section(steps=5_000).with_steps(100_000).steps == 5_000


def test_a_default_budget_leaves_the_identity_as_it_was() -> None:
    assert not {"tokens", "tokens_per_parameter"} & set(section(steps=1500).identity_fields())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "steps: this key is missing"),
        ({"steps": 0}, "steps: 0 is not allowed"),
        ({"steps": 100, "tokens": 1e6}, "tokens: the budget is given by steps and tokens; keep one of them"),
        ({"steps": 0, "tokens": 1e6}, "tokens: the budget is given by steps and tokens"),
        ({"steps": 100, "tokens_per_parameter": 20}, "given by steps and tokens_per_parameter; keep one"),
        ({"tokens": 1e6, "tokens_per_parameter": 20}, "given by tokens and tokens_per_parameter; keep one"),
        ({"tokens": 0}, "greater than 0"),
        ({"tokens": 4096}, "warmup_steps: 10 is not below steps, 2"),
        ({"tokens": 1e6, "batch_tokens": 0}, "batch_tokens: 0 is not allowed"),
    ],
)
def test_what_is_no_budget_is_refused(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**budget)


def test_an_import_with_a_budget_is_trained() -> None:
    with pytest.raises(ValidationError, match="batch_tokens: this key is missing"):
        BaseModelSection.model_validate({"from": "model", "tokens": 1e6})
    rest = {name: value for name, value in SECTION.items() if name != "architecture"}
    assert BaseModelSection.model_validate({"from": "model", "tokens": 1e6, **rest}).steps == 489


def test_steps_that_the_model_makes_too_few_are_refused_with_the_arithmetic() -> None:
    message = "20 tokens for each of 1,000 parameters are 10 steps: optimizer.warmup_steps: 10 is not below steps, 10"
    with pytest.raises(ValueError, match=message):
        section(tokens_per_parameter=20).with_steps(1000)


def test_a_budget_is_told() -> None:
    known = "977 steps of 2,048 tokens: 2,000,896 tokens, 20 for each of 100,000 parameters"
    assert budget_in_words(section(tokens_per_parameter=20), 100_000) == known
    assert budget_in_words(section(tokens_per_parameter=20), 0) == "20 tokens for each parameter, in steps of 2,048"
    assert budget_in_words(section(tokens=2e6), 0) == "977 steps of 2,048 tokens: 2,000,896 tokens"
