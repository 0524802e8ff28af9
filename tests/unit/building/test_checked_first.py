"""No job of a run starts before the recipe check has found nothing wrong."""

from __future__ import annotations

import pytest

from pipeline.building import recipe_check
from tests.unit.worlds import World, silent
from training.errors import RecipeError
from training.specs.recipe_check import CheckAnswer, CheckRequest, Finding

WRONG = Finding(key=("base_model", "architecture", "hiden_size"), message="llama has no such field")


def test_a_recipe_that_the_check_refuses_starts_no_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_check, "ask", lambda requests: [CheckAnswer(findings=(WRONG,))])
    with pytest.raises(RecipeError, match="base_model.architecture.hiden_size: llama has no such field"):
        world.builder.build("raw_corpus", silent)
    world.assert_no_job_ran()
    assert not world.store.versions("raw_corpus")


def test_what_needs_no_library_refuses_it_as_well(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_check, "ask", lambda requests: [CheckAnswer()])
    broken = world.with_overrides("gates.sft_model=[{metric: refusal_rate, must_be: '>=', threshold: 80}]")
    with pytest.raises(RecipeError, match="80 percent is 0.8"):
        broken.builder.build("raw_corpus", silent)
    world.assert_no_job_ran()


def test_judging_and_reusing_ask_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(requests: list[CheckRequest]) -> list[CheckAnswer]:
        raise AssertionError("nothing is built, so nothing is to be checked")

    monkeypatch.setattr(recipe_check, "ask", refuse)
    made = world.publish("raw_corpus", world.passing("raw_corpus"))
    assert world.judge("raw_corpus").promoted
    assert world.builder.build("raw_corpus", silent) == (made, True)
