"""Held-out conversations and pairs of the recipe's own, and sets that hold nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.unit.evaluation.models.conftest import (
    NAMES,
    Evaluate,
    answer,
    conversation,
    copy_of,
    items_of,
    question,
    text_rows,
    train,
    write_sets,
)
from training.data.conversations.chat_format import Conversation
from training.evaluation.behaviour import Behaviour, Parts, Sets
from training.evaluation.findings import Findings
from training.evaluation.model_metrics import compare, own_findings, unscored_notes
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Likelihood
from training.evaluation.turns import reasons_in_words, score_turns
from training.job.context import InputArtifact

Save = Callable[..., InputArtifact]
_NAMES = ("text", "questions", "harmful", "benign", "preferences", "samples", "conversations")
EMPTY: dict[str, list[dict[str, Any]]] = {name: [] for name in _NAMES}
NO_SETS = Sets([], [], [], [], [], [])


def own_pair(key: str, name: str) -> dict[str, Any]:
    """A pair of two turns' prompt."""
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello.", "train": False}]
    prompt = [*said, {"role": "user", "content": question(name)}]
    chosen, rejected = (
        [{"role": "assistant", "content": text, "train": True}] for text in (answer(name), "Read a book.")
    )
    return {"id": key, "prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "judged"}


@pytest.fixture
def loaded(chat: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return LoadedModel("sft_model", chat.eval(), tokenizer, (0, 5))


def test_only_learned_turns_are_scored_each_after_all_turns_before(loaded: LoadedModel) -> None:
    messages = conversation("c", "Anna", "Boris", "Clara")["messages"]
    messages[1] = messages[1] | {"train": False}
    (score,) = score_turns(loaded, [Conversation(messages)], batch=2, context=192)

    (encoded,) = loaded.chat_format.encode([Conversation(messages)])
    ids = torch.tensor(encoded.ids)
    with torch.inference_mode():
        logprobs = loaded.model(ids[None]).logits[0].log_softmax(-1)
    places = [place for place, is_learned in enumerate(encoded.learned) if is_learned]
    expected = math.fsum(float(logprobs[place - 1, ids[place]]) for place in places)
    assert isinstance(score, Likelihood)
    assert score.tokens == len(places) == sum(len(loaded.encode(answer(name))) + 1 for name in ("Boris", "Clara"))
    assert score.nats == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_scored_is_counted_out_and_nothing_is_cut(loaded: LoadedModel) -> None:
    short = conversation("c", "Anna")["messages"]
    length = len(loaded.chat_format.encode([Conversation(short)])[0].ids)
    rows = [
        Conversation(short),
        Conversation(conversation("c", "Anna", "Boris")["messages"]),
        Conversation(short, tools=[{"name": "f"}]),
        Conversation([short[0], short[1] | {"train": False}]),
    ]
    scored, long, tools, unlearned = score_turns(loaded, rows, batch=2, context=length)
    assert isinstance(scored, Likelihood)
    assert long == f"longer than the context of {length} tokens"
    assert "has no tools" in str(tools)
    assert unlearned == "none of its turns is learned"
    assert isinstance(score_turns(loaded, rows[:1], batch=2, context=length - 1)[0], str)


def test_reasons_are_counted() -> None:
    assert reasons_in_words(["b", "a", "b", "c", "d", "d"]) == "2 b; 2 d; 1 a; 1 for other reasons"


def behaviour(likelihoods: dict[str, Likelihood], unscored: dict[str, str] | None = None) -> Behaviour:
    return Behaviour(
        vocabulary=100,
        parts=Parts(conversations=True),
        conversations=likelihoods,
        unscored_conversations=unscored or {},
    )


def test_the_gain_is_taken_over_tokens_of_what_both_scored() -> None:
    judged = behaviour({"a": Likelihood(-2.0, 4), "b": Likelihood(-6.0, 4), "c": Likelihood(-1.0, 2)})
    parent = behaviour({"a": Likelihood(-4.0, 4), "b": Likelihood(-12.0, 4)}, {"c": "too long"})
    sets = replace(NO_SETS, conversations=[conversation(key, "Anna") for key in "abc"])
    findings = own_findings(judged, sets)
    compare("sft_model", findings, judged, parent, sets)
    assert findings.estimates["heldout_answer_loss"].value == pytest.approx(9 / 10)
    assert findings.estimates["answer_gain"].value == pytest.approx((2 + 6) / 8)
    assert [row["id"] for row in findings.items["answer_gain"]] == ["a", "b"]
    assert findings.missing["loss_drop"] == "the evaluation sets hold no general questions"


@pytest.mark.parametrize(
    ("judged", "parent", "reason"),
    [
        ({}, {}, "the evaluation sets hold no conversations"),
        ({"a": Likelihood(-50.0, 10)}, {"a": Likelihood(-90.0, 10)}, "its own loss is not half a nat per token"),
        ({"a": Likelihood(-5.0, 10)}, {"a": Likelihood(-9.0, 9)}, "the parent reads the same turns as other numbers"),
    ],
)
def test_why_there_is_no_gain(judged: dict[str, Likelihood], parent: dict[str, Likelihood], reason: str) -> None:
    findings = Findings()
    compare("sft_model", findings, behaviour(judged), behaviour(parent), NO_SETS)
    assert findings.missing["answer_gain"].startswith(reason)


def test_why_no_conversation_was_scored_is_said_on_the_page() -> None:
    judged = behaviour({}, {"a": "too long", "b": "too long", "c": "odd"})
    findings = own_findings(judged, NO_SETS)
    compare("sft_model", findings, judged, behaviour({}), NO_SETS)
    reason = "no held-out conversation could be scored: 2 too long; 1 odd"
    assert findings.missing == {
        "heldout_answer_loss": reason,
        "answer_gain": reason,
        "loss_drop": "the evaluation sets hold no general questions",
    }
    assert unscored_notes(judged) == ["3 held-out conversations were left out, and 0 scored: 2 too long; 1 odd."]


def test_a_model_equal_to_its_parent_gains_nothing(save: Save, evaluate: Evaluate, chat: LlamaForCausalLM) -> None:
    metrics = evaluate(save("dpo_model", chat), save("sft_model", chat))["metrics"]
    assert metrics["answer_gain"] == 0
    assert metrics["heldout_answer_loss"] < 1


def test_pairs_of_both_kinds_are_judged_together(
    save: Save, evaluate: Evaluate, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, chat: LlamaForCausalLM
) -> None:
    long = own_pair("long", "Anna")
    long["chosen"] = [{"role": "assistant", "content": "red " * 300, "train": True}]
    sets = write_sets(tmp_path / "sets", pairs=[*(own_pair(f"o{name}", name) for name in NAMES), long])
    parent = train(copy_of(chat, tokenizer), text_rows(tokenizer, ["Read a book."]), 5, rate=1e-3)
    report = evaluate(save("dpo_model", chat), save("sft_model", parent), sets=sets)
    items = items_of(report["folder"])["preference_accuracy"]
    assert {row["id"][0] for row in items} == {"p", "o"} and len(items) == 2 * len(NAMES)
    assert items[-1]["chosen"] == f"assistant: {answer(NAMES[-1])}"
    card = (report["folder"] / "report" / "card.md").read_text()
    assert "1 held-out pairs of the recipe's own were left out" in card and "longer than the context of 192" in card


def test_sets_of_conversations_alone_leave_the_rest_out_with_reasons(
    save: Save, evaluate: Evaluate, tmp_path: Path, base: LlamaForCausalLM, chat: LlamaForCausalLM
) -> None:
    rows = [conversation(f"c{number}", *NAMES[number : number + 2]) for number in range(4)]
    only = write_sets(tmp_path / "only", **EMPTY | {"conversations": rows})
    for asset, model, parent in (
        ("base_model", base, None),
        ("sft_model", chat, save("base_model", base)),
        ("dpo_model", chat, save("sft_model", chat)),
        ("lora_model", chat, save("dpo_model", chat)),
    ):
        report = evaluate(save(asset, model), parent, sets=only, out=f"only-{asset}")
        assert report["metrics"]["loads"] == 1, asset
        assert report["metrics"]["heldout_answer_loss"] > 0, asset
        assert "hold no" in report["missing"]["loss_drop"], asset
        assert ("answer_gain" in report["metrics"]) == (asset != "base_model")
        assert all(report["missing"].values())


def test_sets_that_hold_nothing_end_in_reasons(
    save: Save, evaluate: Evaluate, tmp_path: Path, base: LlamaForCausalLM, chat: LlamaForCausalLM
) -> None:
    report = evaluate(save("sft_model", chat), save("base_model", base), sets=write_sets(tmp_path / "none", **EMPTY))
    assert report["metrics"]["loads"] == 1
    assert {"heldout_answer_loss", "answer_gain", "loss_drop", "refusal_rate", "stop_rate"} <= set(report["missing"])
    assert json.loads((report["folder"] / "report" / "samples.json").read_text()) == []
