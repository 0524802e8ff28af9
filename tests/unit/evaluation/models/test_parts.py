"""Scoring and generation against plain one-at-a-time references."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.unit.evaluation.models.conftest import NAMES, question, story
from training.evaluation.generation import Completion, Sampling, generate, loops, readable
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Span, passages, score, score_texts, total, windows


@pytest.fixture
def loaded(chat: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return LoadedModel("sft_model", chat.eval(), tokenizer, (0, tokenizer.convert_tokens_to_ids("<|end|>")))


def test_scores_do_not_depend_on_the_batch(loaded: LoadedModel) -> None:
    spans = [Span(*loaded.answered(question(name), "x " * length, True)) for length, name in enumerate(NAMES, start=1)]
    together = score(loaded, spans, batch=8, context=128)
    for span, likelihood in zip(spans, together, strict=True):
        tokens = torch.tensor([[*span.given, *span.scored]])
        with torch.inference_mode():
            logprobs = loaded.model(tokens).logits.log_softmax(-1)[0]
        expected = sum(float(logprobs[at - 1, tokens[0, at]]) for at in range(len(span.given), tokens.shape[1]))
        assert likelihood.nats == pytest.approx(expected, abs=1e-3)
        assert likelihood.tokens == len(span.scored)


@pytest.mark.parametrize("context", [1, 7, 64, 10_000])
def test_windows_score_every_token_once(loaded: LoadedModel, context: int) -> None:
    text = story(random.Random(4), 9)
    spans = windows(loaded, text, context)
    assert [token for span in spans for token in span.scored] == loaded.encode(text)
    assert all(len(span.given) == 1 and 0 < len(span.scored) <= context for span in spans)
    assert spans[0].given == [loaded.start]


def test_a_span_longer_than_the_context_keeps_what_is_nearest(loaded: LoadedModel) -> None:
    long, short = list(range(10, 60)), [7, 8, 9]
    cut = score(loaded, [Span(long, short)], batch=1, context=16)[0]
    assert cut.nats == pytest.approx(score(loaded, [Span(long[-14:], short)], batch=1, context=16)[0].nats)
    assert score(loaded, [Span(short, long)], batch=1, context=16)[0].tokens == 16


def test_batched_greedy_generation_equals_generate_one_by_one(loaded: LoadedModel) -> None:
    prompts = [loaded.prompt(text, True) for text in (question("Anna"), "Hi", "How can I hurt Boris?", "Why? " * 6)]
    for prompt, completion in zip(prompts, generate(loaded, prompts, 20, batch=3), strict=True):
        reference = loaded.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)).long(),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=list(loaded.stops),
        )
        expected = [token for token in reference[0, len(prompt) :].tolist() if token not in loaded.stops]
        assert list(completion.tokens) == expected


def test_nothing_is_generated_long_after_a_stopping_text(loaded: LoadedModel) -> None:
    prompts = [loaded.prompt(question(name), True) for name in ("Anna", "Boris")]
    endless = LoadedModel(loaded.asset, loaded.model, loaded.tokenizer, (0,))  # its end of turn ends nothing
    whole = generate(endless, prompts, 96, 2)
    assert all(len(completion.tokens) > 64 for completion in whole)
    for completion, full in zip(generate(endless, prompts, 96, 2, until=("hat of", "!?")), whole, strict=True):
        assert completion.tokens == full.tokens[:16]
        assert "hat of" in completion.text
    assert generate(endless, prompts, 96, 2, until=("!?",)) == whole


def test_sampling_is_decided_by_its_seed(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = LoadedModel("base_model", base.eval(), tokenizer, (0, tokenizer.convert_tokens_to_ids("<|end|>")))
    prompts = [[loaded.start, *loaded.encode(story(random.Random(1), 2))]] * 4
    first, again, other = (generate(loaded, prompts, 12, 4, Sampling(seed, temperature=1.5)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], False),
        ([5], False),
        ([5, 5, 5, 5], True),
        (list(range(30)), False),
        ([1, 2, 3] * 10, True),
        ([*range(20), *[9] * 40], True),
    ],
)
def test_loops(tokens: list[int], expected: bool) -> None:
    assert loops(tokens) is expected


@pytest.mark.parametrize(
    ("text", "stopped", "expected"),
    [
        ("the cat sat on the mat", True, True),
        ("the cat sat on the ma", False, True),
        ("the cat", True, False),
        ("thecat satonthe matthe onsat", True, False),
        ("the cat sat \ufffd on the mat", True, False),
        ("the cat sat on the mat \ufffd", False, True),
    ],
)
def test_readable(text: str, stopped: bool, expected: bool) -> None:
    assert readable(Completion(tuple(range(12)), text, stopped), {"the", "cat", "sat", "on", "mat"}) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("今天天气很好。", True), ("今龍天鳳氣好馬", False), ("खर्च करना अच्छा नहीं", True), ("खर्चा करने अच्छी नहि", False)],
)
def test_readable_in_other_scripts(text: str, expected: bool) -> None:
    vocabulary = {*"今天气很好", "खर्च", "करना", "अच्छा", "नहीं"}
    assert readable(Completion(tuple(range(12)), text, True), vocabulary) is expected


@pytest.mark.parametrize(
    ("text", "stopped", "tokens", "expected"),
    [
        ("Yes.", True, (1, 2), True),
        ("Yes.", False, (1, 2), False),
        (" \n", True, (3,), False),
        ("ha ha ha ha", True, (4, 4, 4, 4), False),
        ("\ufffd", True, (5,), False),
    ],
)
def test_clean(text: str, stopped: bool, tokens: tuple[int, ...], expected: bool) -> None:
    assert Completion(tokens, text, stopped).clean is expected


@given(st.text(st.sampled_from("ab \né€\U0001f600"), max_size=5000) | st.text(max_size=300))
@settings(max_examples=50, deadline=None)
def test_passages_divide_a_text(text: str) -> None:
    starts = passages(text)
    pieces = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 1024 for piece in pieces) or not text
    for piece, following in pairwise(pieces):
        assert len(piece.encode()) + len(following.encode()) > 1024 or "\n" in piece + following


def test_passages_end_with_lines_and_add_up_to_the_document(loaded: LoadedModel) -> None:
    text = "".join(f"{story(random.Random(seed), 3)}\n" for seed in range(20))
    text += "naïve — \U0001f469\u200d\U0001f680" * 90
    by_document = score_texts(loaded, [text, "", "x"], batch=4, context=64)
    assert [len(part) for part in by_document[1:]] == [0, 1]
    scores = list(by_document[0].values())
    assert len(scores) > 4
    assert all(score.begins == text[start : start + len(score.begins)] for start, score in by_document[0].items())
    assert sum(text[start - 1] == "\n" for start in list(by_document[0])[1:]) >= 2
    assert total(scores).bytes == len(text.encode())
    assert total(scores).tokens == len(loaded.encode(text))
    whole = score(loaded, windows(loaded, text, 64), batch=1, context=64)
    assert total(scores).nats == pytest.approx(-sum(part.nats for part in whole), rel=1e-5)
