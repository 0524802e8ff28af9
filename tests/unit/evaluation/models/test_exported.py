"""The folder is the child that was trained, and not its parent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.unit.evaluation.models.conftest import copy_of, probe_of
from training.evaluation.exported import Answer, answer, change_cosine, parent_ratio
from training.evaluation.models import LoadedModel
from training.specs.evidence import Estimate
from training.specs.probe import Probe

Moved = Callable[[float], LlamaForCausalLM]


@pytest.fixture
def moved(tokenizer: PreTrainedTokenizerFast, untrained: LlamaForCausalLM) -> Moved:
    """A child of the untrained model, with weights as a bf16 folder gives them, each moved by one step."""

    def made(step: float) -> LlamaForCausalLM:
        child, draw = copy_of(untrained, tokenizer), torch.Generator().manual_seed(4)
        with torch.no_grad():
            for weight in child.parameters():
                weight.copy_(
                    weight.bfloat16().float() + step * (2 * torch.randint(2, weight.shape, generator=draw) - 1)
                )
        return child

    return made


def rounded(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return copy_of(copy_of(model, tokenizer).bfloat16(), tokenizer)


@pytest.fixture
def ask(tokenizer: PreTrainedTokenizerFast) -> Callable[[LlamaForCausalLM, Probe], Answer]:
    def asked(model: LlamaForCausalLM, probe: Probe) -> Answer:
        reply = answer(LoadedModel("dpo_model", model.eval(), tokenizer, (0, 5)), probe)
        assert isinstance(reply, Answer), reply
        return reply

    return asked


def value(estimate: Estimate | str) -> float:
    assert isinstance(estimate, Estimate), estimate
    return estimate.value


Ask = Callable[[LlamaForCausalLM, Probe], Answer]


def test_a_small_change_that_bf16_rounds_away_shows(tokenizer: PreTrainedTokenizerFast, moved: Moved, ask: Ask) -> None:
    parent, child = moved(0.0), moved(1e-5)
    probe = probe_of(child)
    before = ask(parent, probe)

    exact, lossy, untouched = ask(child, probe), ask(rounded(child, tokenizer), probe), ask(parent, probe)

    assert value(change_cosine(probe, exact, before)) == pytest.approx(1.0, abs=1e-6)
    assert value(change_cosine(probe, lossy, before)) < 0.5
    assert value(change_cosine(probe, untouched, before)) == 0.0
    assert value(parent_ratio(probe, exact, before)) < 0.05
    assert value(parent_ratio(probe, lossy, before)) > 0.5
    assert value(parent_ratio(probe, untouched, before)) == 1.0


def test_a_large_change_survives_bf16(tokenizer: PreTrainedTokenizerFast, moved: Moved, ask: Ask) -> None:
    parent, child = moved(0.0), moved(5e-3)
    probe = probe_of(child)

    before, saved = ask(parent, probe), ask(rounded(child, tokenizer), probe)

    assert value(change_cosine(probe, saved, before)) > 0.98
    assert value(parent_ratio(probe, saved, before)) < 0.5


def test_a_model_that_did_not_change_has_no_numbers(moved: Moved, ask: Ask) -> None:
    parent = moved(0.0)
    probe = probe_of(parent)
    parent_answer = ask(parent, probe)
    same = Answer(0.0, parent_answer.weights)

    assert change_cosine(probe, parent_answer, parent_answer) == "training has changed none of the probe's weights"
    assert "nothing to tell apart" in str(parent_ratio(probe, same, same))


def test_a_probe_of_another_form_gives_a_reason(tokenizer: PreTrainedTokenizerFast, moved: Moved) -> None:
    model = moved(0.0)
    probe = probe_of(model)
    loaded = LoadedModel("dpo_model", model, tokenizer, (0, 5))
    part = probe.weights[0]

    assert "holds no float32" in str(answer(loaded, probe.model_copy(update={"weights": ()})))
    assert "holds no float32" in str(answer(loaded, probe.model_copy(update={"float32_logprobs": ()})))
    for wrong in (part.model_copy(update={"name": "other"}), part.model_copy(update={"indices": (10**9,)})):
        assert "that the model does not have" in str(answer(loaded, probe.model_copy(update={"weights": (wrong,)})))
