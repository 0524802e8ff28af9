"""A user's own conversations and pairs as token ids, with a chat template that is not Gatehouse's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.unit.data.conversations import chat_tokenizers
from training.data.conversations.chat_format import ChatFormat, RowRefused
from training.data.conversations.encoded_pairs import encode_pairs
from training.data.conversations.encoded_rows import EncodedRows, LeftOut
from training.data.conversations.mixing import MIXED_CONVERSATION_SCHEMA, generated_conversation
from training.data.conversations.template_process import TemplateRefused
from training.data.tables import write_table
from training.data.tokens.order import RowOrder
from training.engine import post_training
from training.engine.pairs import CHOSEN_SHARE, PairBatches
from training.engine.post_training import read_conversations
from training.engine.session import Session
from training.errors import InputRefused, RecipeError
from training.specs.post_training import SftModelSection, TooLong

Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    return ChatFormat.load(chat_tokenizers.write(tmp_path_factory.mktemp("qwen3"), *chat_tokenizers.qwen3()))


def talk(*turns: str, train: bool = True) -> Messages:
    """Questions and answers in turn."""
    return [
        {"role": "assistant", "content": text, "train": train} if place % 2 else {"role": "user", "content": text}
        for place, text in enumerate(turns)
    ]


class Reader:
    """Reads rows as a training job does."""

    def __init__(self, folder: Path, chat: ChatFormat) -> None:
        self.folder, self.chat = folder, chat
        self.lines: list[str] = []

    def __call__(self, rows: list[dict[str, Any]], context: int = 200, too_long: str = "turns") -> EncodedRows:
        path = self.folder / "train.parquet"
        write_table(path, [generated_conversation(row) for row in rows], MIXED_CONVERSATION_SCHEMA)
        session = SimpleNamespace(
            chat_format=self.chat,
            runtime=SimpleNamespace(rank=0),
            context=SimpleNamespace(report=self.folder, events=SimpleNamespace(log=self.lines.append)),
        )
        section = SftModelSection.model_validate(
            {
                "steps": 1,
                "context": context,
                "too_long": too_long,
                "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
            }
        )
        return read_conversations(cast(Session, session), path, section, "base_model")

    @property
    def report(self) -> dict[str, int]:
        told: dict[str, int] = json.loads((self.folder / "conversations.json").read_text())
        return told


@pytest.fixture
def read(tmp_path: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(post_training, "embedding_size", lambda session, parent: 10**6)
    return Reader(tmp_path, chat)


def row(row_id: str, messages: Messages, format_: str = "messages", tools: str = "") -> dict[str, Any]:
    told = {"tools": tools, "source": "s", "where": f"a.jsonl:{row_id}", "format": format_}
    return {"id": row_id, "messages": json.dumps(messages), "kind": "gathered", "domain": "d", "source_id": "x", **told}


def learned(read: Reader, result: EncodedRows) -> list[str]:
    return [read.chat.decode(ids[mask].tolist()) for ids, mask in zip(result.sequences, result.masks, strict=True)]


def test_only_chosen_turns_are_learned(read: Reader) -> None:
    messages = [*talk("Name a red fruit.", "Cherry.", train=False), *talk("And a blue one?", "Plum.")]
    assert learned(read, read([row("1", messages)])) == ["Plum.<|im_end|>"]
    assert read.report["conversations"] == 1


def test_a_long_conversation_loses_whole_turns_and_a_long_answer_goes(read: Reader) -> None:
    rows = [
        row("1", talk("Name a red fruit. " * 40, "Cherry.", "And a blue one?", "Plum.")),
        row("2", talk("Name a red fruit.", "Cherry. " * 90)),
        row("3", talk("Name a colour.", "Blue.")),
    ]
    result = read(rows, context=60)
    assert learned(read, result) == ["Plum.<|im_end|>", "Blue.<|im_end|>"]
    assert (result.left_out.count, result.left_out.of) == (1, 3)
    assert read.report["lost their first turns to fit"] == 1
    assert any("1 longer than the context and left out" in line for line in read.lines)


def test_a_generated_conversation_is_never_shortened(read: Reader) -> None:
    long = row("1", talk("Name a red fruit. " * 40, "Cherry.", "And a blue one?", "Plum."), format_="")
    result = read([long, row("2", talk("Name a colour.", "Blue."))], context=60)
    assert learned(read, result) == ["Blue.<|im_end|>"]
    assert result.left_out == LeftOut("conversations", 1, 2)
    assert result.left_out.share == 0.5
    assert "1 of 2 conversations are longer than the context of 60 tokens and are left out" in read.lines
    with pytest.raises(RecipeError, match="no conversation fits into the context of 60"):
        read([long], context=60)


def test_what_is_too_long_goes_by_the_rule_of_the_recipe(read: Reader) -> None:
    rows = [row("1", talk("Name a red fruit. " * 40, "Cherry.", "And?", "Plum.")), row("2", talk("A colour?", "Blue."))]
    assert learned(read, read(rows, context=60)) == ["Plum.<|im_end|>", "Blue.<|im_end|>"]

    dropped = read(rows, context=60, too_long="drop")
    assert learned(read, dropped) == ["Blue.<|im_end|>"]
    assert dropped.left_out == LeftOut("conversations", 1, 2)
    with pytest.raises(RowRefused, match=r"a.jsonl:1: it has \d+ tokens, and the context has 60"):
        read(rows, context=60, too_long="refuse")


@pytest.mark.parametrize("too_long", ["drop", "refuse"])
def test_a_pair_that_is_too_long_goes_by_the_rule_of_the_recipe(chat: ChatFormat, too_long: TooLong) -> None:
    long = talk("Name a red fruit. " * 40, "Cherry.", "And a blue one?")
    rows = [pair("1", long, answer("Plum."), answer("Cherry.")), pair("2", talk("Red?"), answer("Yes."), answer("No."))]
    if too_long == "refuse":
        with pytest.raises(RowRefused, match=r"b.jsonl:1: chosen: it has \d+ tokens, and the context has 60"):
            encode_pairs(chat, rows, 60, print, too_long=too_long)
        return
    kept, left_out = encode_pairs(chat, rows, 60, print, too_long=too_long)
    assert ([one.id for one in kept], left_out) == (["2"], LeftOut("pairs", 1, 2))


def test_a_generated_pair_that_is_too_long_is_left_out_whatever_the_rule(chat: ChatFormat) -> None:
    """The rule is for rows of a user's own; a mixed file has both kinds as messages."""
    long = pair("1", talk("Name a red fruit. " * 40), answer("Plum."), answer("Cherry.")) | {"format": "", "where": ""}
    rows = [long, pair("2", talk("Red?"), answer("Yes."), answer("No."))]
    kept, left_out = encode_pairs(chat, rows, 60, print, too_long="refuse")
    assert ([one.id for one in kept], left_out) == (["2"], LeftOut("pairs", 1, 2))


def test_the_rule_that_always_was_changes_no_identity() -> None:
    fields = {"steps": 1, "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0}}
    usual, other = (SftModelSection.model_validate(fields | {"too_long": rule}) for rule in ("turns", "drop"))
    assert "too_long" not in usual.identity_fields()
    assert other.identity_fields()["too_long"] == "drop"


def test_a_plain_text_has_no_template_and_goes_on_in_further_rows(read: Reader, chat: ChatFormat) -> None:
    text = "The cat sat. " * 30
    result = read([row("1", [{"role": "assistant", "content": text, "train": True}], "plain_text")], context=50)
    assert len(result.sequences) > 1
    assert all(len(ids) <= 50 for ids in result.sequences)
    assert [int(mask.sum()) for mask in result.masks] == [len(ids) - 1 for ids in result.sequences]
    ids = np.concatenate([ids[1:] for ids in result.sequences]).tolist()
    assert ids == [*chat.encode_plain(text), chat.end_of_text]
    assert result.left_out.count == 0


def test_a_token_outside_the_embedding_names_the_row(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_training, "embedding_size", lambda session, parent: 20)
    with pytest.raises(InputRefused, match=r"a\.jsonl:1: the token \d+ lies outside the model's embedding of 20"):
        read([row("1", talk("Name a colour.", "Blue."))])


def test_what_a_template_loses_stops_the_job_before_training(tmp_path: Path, read: Reader) -> None:
    tokenizer, _, tokens = chat_tokenizers.llama3()
    folder = chat_tokenizers.write(tmp_path / "llama3", tokenizer, chat_tokenizers.LLAMA3, tokens)
    read.chat = ChatFormat.load(folder)
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    messages = [*talk("Oslo?"), {"role": "assistant", "content": "", "tool_calls": [call], "train": True}]
    with pytest.raises(TemplateRefused, match="tool calls"):
        read([row("1", messages)])


def pair(row_id: str, prompt: Messages, chosen: Messages, rejected: Messages) -> dict[str, Any]:
    parts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    texts = {name: json.dumps(messages) for name, messages in parts.items()}
    return {"id": row_id, **texts, "where": f"b.jsonl:{row_id}", "format": "prompted", "as_messages": True}


def answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text, "train": True}]


def test_a_prompt_loses_whole_turns_and_no_answer_is_cut(chat: ChatFormat) -> None:
    lines: list[str] = []
    prompt = talk("Name a red fruit. " * 40, "Cherry.", "And a blue one?")
    rows = [
        pair("1", prompt, answer("Plum."), answer("Cherry.")),
        pair("2", prompt[:1], answer("Cherry."), answer("Plum.")),
    ]
    (kept,), left_out = encode_pairs(chat, rows, 60, lines.append)
    assert chat.decode(kept.prompt) == chat.decode(chat.prompt(prompt[2:]).tolist())
    assert chat.decode(kept.chosen) == "Plum.<|im_end|>"
    assert chat.decode(kept.rejected) == "Cherry.<|im_end|>"
    assert left_out.count == 1
    assert lines == [
        "1 of 2 pairs lost the first turns of their prompts to fit",
        "1 of 2 pairs are longer than the context of 60 tokens and are left out",
    ]


def test_what_a_tool_says_within_an_answer_is_not_learned(chat: ChatFormat) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    chosen: Messages = [
        {"role": "assistant", "content": "", "tool_calls": [call], "train": True},
        {"role": "tool", "content": "Blue.", "name": "get_weather", "tool_call_id": "c1"},
        *answer("It means nothing."),
    ]
    (made,), _ = encode_pairs(chat, [pair("1", talk("Oslo?"), chosen, answer("Red."))], 400, print)
    batches = PairBatches((made,), 1, 1, 1, 400, 1, RowOrder([1], [1.0], 0), chat.pad, np.zeros((1, 2), np.float32))

    batch = batches.micro_batch(0, 0, 0)
    masks = batch["completion_mask"].bool()
    better, worse = (chat.decode(ids[mask].tolist()) for ids, mask in zip(batch["input_ids"], masks, strict=True))
    assert "get_weather" in better
    assert "It means nothing.<|im_end|>" in better
    assert "Blue." not in better
    assert "tool_response" not in better
    assert worse.endswith("Red.<|im_end|>")
    assert int(masks[0].sum()) == made.learned_of_chosen
    assert float(batch[CHOSEN_SHARE]) == 1.0


def test_a_pair_with_a_token_outside_the_embedding_is_named(chat: ChatFormat) -> None:
    rows = [pair("7", talk("Name a colour."), answer("Blue."), answer("Red."))]
    with pytest.raises(InputRefused, match=r"b\.jsonl:7: chosen: the token"):
        encode_pairs(chat, rows, 100, print, embedding=20)
