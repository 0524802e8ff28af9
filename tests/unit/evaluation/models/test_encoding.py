"""Evaluation turns text into the tokens that training turned it into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from training.data.conversations.chat_format import ChatFormat
from training.data.conversations.chat_template import encode_conversation
from training.data.conversations.encoded_pairs import encode_pairs
from training.data.conversations.encoded_rows import LeftOut
from training.data.tokens.byte_bpe import load_plain
from training.evaluation import harness_model
from training.evaluation.harness_model import HarnessModel
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Likelihood, Span, score_texts, total, windows
from training.specs.tokenizer import END_OF_TURN, SPECIAL_TOKENS

NAMES_IN_TEXT = "A file ends with <|endoftext|>, a turn begins with <|user|> and stops at <|end|>. <|pad|><|system|>"
PROMPTS = (
    "It ends in a space ",
    "a newline\n",
    "digits 12",
    "tab\t",
    "emoji \U0001f680",
    f"a{END_OF_TURN}",
    "\u00a0nbsp",
    "\u3000wide",
    "\ufeffmark",
    "",
    "two\n\nlines",
    "What is it?",
)
ANSWERS = (
    "$5",
    "\nfirst",
    "\U0001f469\u200d\U0001f680",
    " leading",
    "",
    "a\u0085b",
    "a\u2028b",
    "Yes.",
    "  two  spaces",
    "e\u0301",
    f"{END_OF_TURN}no",
    "1",
    "trailing ",
    "<|assistant|>\nyes",
)


@pytest.fixture(params=["base_model", "sft_model"])
def loaded(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, untrained: LlamaForCausalLM
) -> LoadedModel:
    return LoadedModel(request.param, untrained.eval(), tokenizer, (0, 5))


@pytest.fixture
def plain(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Tokenizer:
    """The tokenizer by which training encodes documents."""
    tokenizer.save_pretrained(tmp_path)
    return load_plain(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", [NAMES_IN_TEXT, *SPECIAL_TOKENS, "no names at all", " \u00e9\U0001f680"])
def test_names_of_special_tokens_are_text(loaded: LoadedModel, plain: Tokenizer, text: str) -> None:
    ids = loaded.encode(text)

    assert ids == plain.encode(text, add_special_tokens=False).ids
    assert min(ids) >= len(SPECIAL_TOKENS)
    assert loaded.decode(ids) == text
    assert loaded.offsets(text) == plain.encode(text, add_special_tokens=False).offsets


def test_a_plain_prompt_holds_one_special_token(loaded: LoadedModel) -> None:
    prompt = loaded.prompt(NAMES_IN_TEXT, chat=False)

    assert prompt[0] == loaded.start
    assert min(prompt[1:]) >= len(SPECIAL_TOKENS)
    assert min(loaded.answered("Q", NAMES_IN_TEXT, chat=False)[1]) >= len(SPECIAL_TOKENS)


def test_held_out_text_is_scored_by_the_tokens_of_training(loaded: LoadedModel, plain: Tokenizer) -> None:
    text = "\n".join([NAMES_IN_TEXT] * 30)
    ids = plain.encode(text, add_special_tokens=False).ids

    spans = windows(loaded, text, 64)
    scored = total([part for parts in score_texts(loaded, [text], 4, 64) for part in parts.values()])

    assert [token for span in spans for token in span.scored] == ids
    assert (scored.tokens, scored.bytes) == (len(ids), len(text.encode()))


def requests(*pairs: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, index, metadata=("task", index, 1)) for index, pair in enumerate(pairs)]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """What the harness asks to be scored; nothing is."""
    asked: list[Span] = []

    def note(loaded: LoadedModel, spans: list[Span], *limits: int) -> list[Likelihood]:
        asked.extend(spans)
        return [Likelihood(-1.0, 1)] * len(spans)

    monkeypatch.setattr(harness_model, "score", note)
    return asked


def test_the_harness_scores_a_base_model_on_plain_text(
    tokenizer: PreTrainedTokenizerFast, plain: Tokenizer, untrained: LlamaForCausalLM, spans: list[Span]
) -> None:
    model = HarnessModel(LoadedModel("base_model", untrained, tokenizer, (0, 5)), 4, 192)

    model.loglikelihood(requests((f"Which ends? {END_OF_TURN}", f" {END_OF_TURN} does")))

    text = f"Which ends? {END_OF_TURN} {END_OF_TURN} does"
    assert [*spans[0].given, *spans[0].scored] == [model._loaded.start, *plain.encode(text).ids]
    assert model._loaded.decode(spans[0].scored) == f" {END_OF_TURN} does"


def test_the_harness_scores_a_chat_model_on_the_turns_of_training(
    tokenizer: PreTrainedTokenizerFast, untrained: LlamaForCausalLM, spans: list[Span]
) -> None:
    loaded = LoadedModel("sft_model", untrained, tokenizer, (0, 5))
    model = HarnessModel(loaded, 4, 192)
    question, answer = f"What does {END_OF_TURN} do?", f"Return a {END_OF_TURN} x."
    context = model.apply_chat_template([{"role": "user", "content": question}])

    model.loglikelihood(requests((context, answer)))

    assert list(spans[0].given) == loaded.prompt(question, chat=True)
    assert [*spans[0].scored, loaded.stops[1]] == loaded.answered(question, answer, chat=True)[1]


def test_pairs_are_encoded_alike_everywhere(tokenizer: PreTrainedTokenizerFast, untrained: LlamaForCausalLM) -> None:
    """Training's pairs, the evaluation's prompts and answers, and the chat template: 168 awkward pairs."""
    loaded = LoadedModel("dpo_model", untrained, tokenizer, (0, 5))
    rows: list[dict[str, Any]] = [
        {"id": f"{at}-{number}", "prompt": prompt, "chosen": answer, "rejected": answer}
        for at, prompt in enumerate(PROMPTS)
        for number, answer in enumerate(ANSWERS)
    ]

    pairs, dropped = encode_pairs(ChatFormat.of(tokenizer), rows, 512, print)

    assert (len(pairs), dropped) == (168, LeftOut("pairs", 0, 168))
    for row, pair in zip(rows, pairs, strict=True):
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]
        rendered = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
        assert pair.prompt == loaded.prompt(row["prompt"], chat=True)
        assert pair.chosen == pair.rejected == loaded.answered(row["prompt"], row["chosen"], chat=True)[1]
        assert (
            [*pair.prompt, *pair.chosen, *loaded.encode("\n")]
            == rendered
            == encode_conversation(tokenizer, turns)[0].tolist()
        )
