"""Gatehouse's own template keeps its ids under the chat format, and says what it has no place for."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.unit.data.conversations.chat_tokenizers import byte_level
from training.data.conversations.chat_format import ChatFormat, Conversation, RowRefused, check
from training.data.conversations.chat_template import TEMPLATES, encode_conversation
from training.data.conversations.own_format import OwnFormat
from training.data.conversations.template_probe import probe_template
from training.errors import InputRefused
from training.specs.tokenizer import END_OF_TEXT, END_OF_TURN, PAD, SPECIAL_TOKENS

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": f"What does {END_OF_TURN} do?"},
    {"role": "assistant", "content": f" It ends {END_OF_TURN} a turn.\n"},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = PreTrainedTokenizerFast(tokenizer_object=byte_level(SPECIAL_TOKENS), eos_token=END_OF_TEXT, pad_token=PAD)
    made.chat_template = dict(TEMPLATES)
    return made


def test_the_ids_are_those_of_the_fast_path(tokenizer: Any) -> None:
    chat = ChatFormat.of(tokenizer)
    assert isinstance(chat, OwnFormat)
    conversation = Conversation(TALK)
    (encoded,) = chat.encode([conversation])
    ids, mask = encode_conversation(tokenizer, TALK)
    assert (encoded.ids.tolist(), encoded.learned.tolist()) == (ids.tolist(), mask.tolist())
    assert chat.prompt(TALK[:4]).tolist() == encode_conversation(tokenizer, TALK[:4], True)[0].tolist()
    assert chat.render(TALK) == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert dict(encoded.notes) == {"trimmed": 1, "names_as_text": 1}
    check(chat, conversation, encoded)
    assert chat.stops == tuple(tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_TEXT]))
    assert chat.before_document == chat.end_of_text == tokenizer.eos_token_id


def test_only_chosen_turns_are_learned(tokenizer: Any) -> None:
    chat = ChatFormat.of(tokenizer)
    conversation = Conversation([*TALK[:2], TALK[2] | {"train": False}, *TALK[3:]])
    (encoded,) = chat.encode([conversation])
    assert tokenizer.decode(encoded.ids[encoded.learned]) == f"Yes.{END_OF_TURN}"
    check(chat, conversation, encoded)


def test_what_the_template_has_no_place_for_is_refused_by_row(tokenizer: Any) -> None:
    chat = ChatFormat.of(tokenizer)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    bad = {
        "unknown role 'tool'": Conversation([*TALK, {"role": "tool", "content": "x"}], where="a:3"),
        "has no tool calls": Conversation([TALK[1], call], where="a:3"),
        "has no tools": Conversation(TALK, [{}], where="a:3"),
    }
    for match, conversation in bad.items():
        with pytest.raises(RowRefused, match=f"a:3: .*{match}"):
            chat.encode([conversation])
    good, refused = chat.encode_each([Conversation(TALK), bad["has no tools"]])
    assert not isinstance(good, RowRefused) and isinstance(refused, RowRefused)
    assert probe_template(chat, ["role system"]).prompt_is_prefix


def test_the_template_over_another_tokenizer_is_refused() -> None:
    other = PreTrainedTokenizerFast(tokenizer_object=byte_level((END_OF_TEXT, PAD)), eos_token=END_OF_TEXT)
    other.add_tokens([AddedToken("<|user|>")])
    other.chat_template = dict(TEMPLATES)
    with pytest.raises(InputRefused, match=r"the tokenizer lacks .*<\|end\|>"):
        ChatFormat.of(other)
