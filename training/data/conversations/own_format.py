"""The chat format of Gatehouse's own template, which is encoded without rendering it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.conversations.chat_format import ASSISTANT, ChatFormat, Conversation, Encoded, RowRefused, Turn
from training.data.conversations.chat_template import (
    CHAT_TEMPLATE,
    ROLES,
    TRAINING_TEMPLATE,
    encode_conversations,
    plain_content,
)
from training.data.conversations.spans import Message
from training.data.tokens.shards import Int64
from training.errors import InputRefused
from training.specs.tokenizer import END_OF_TEXT, END_OF_TURN, PAD, SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class OwnFormat(ChatFormat):
    """Contents are tokenized by themselves, and the names of special tokens in them are broken by a space."""

    name = "Gatehouse's chat template"
    template = TRAINING_TEMPLATE

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Args:
            tokenizer: With Gatehouse's special tokens.
        """
        self._tokenizer = tokenizer
        unknown = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_added_vocab()]
        if unknown:
            raise InputRefused(f"the tokenizer lacks {', '.join(unknown)}, which {self.name} writes")
        end, text, pad = (int(tokenizer.convert_tokens_to_ids(token)) for token in (END_OF_TURN, END_OF_TEXT, PAD))
        self.stops, self.start, self.end_of_text, self.pad = (end, text), None, text, pad
        self._controls = np.array(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), np.int64)

    @property
    def exported(self) -> str:
        """The template that stands in the folder, to the byte."""
        return CHAT_TEMPLATE

    def encode_each(self, conversations: Sequence[Conversation]) -> list[Encoded | RowRefused]:
        """See `ChatFormat`."""
        problems = [_problem(conversation) for conversation in conversations]
        whole = [conversation for conversation, problem in zip(conversations, problems, strict=True) if problem is None]
        rows = iter(encode_conversations(self._tokenizer, [conversation.messages for conversation in whole]))
        return [
            self._encoded(conversation, *next(rows)) if problem is None else problem
            for conversation, problem in zip(conversations, problems, strict=True)
        ]

    def prompts(self, conversations: Sequence[Conversation]) -> list[Int64]:
        """See `ChatFormat`."""
        for conversation in conversations:
            if problem := _problem(conversation):
                raise problem
        talks = [conversation.messages for conversation in conversations]
        return [ids for ids, _ in encode_conversations(self._tokenizer, talks, add_generation_prompt=True)]

    def render(self, messages: Sequence[Message], prompt: bool = False, tools: Sequence[Any] = ()) -> str:
        """See `ChatFormat`."""
        if problem := _problem(Conversation(messages, tools)):
            raise problem
        turns = [f"{ROLES[turn['role']]}\n{plain_content(turn.get('content'))}{END_OF_TURN}\n" for turn in messages]
        return "".join(turns) + (f"{ROLES[ASSISTANT]}\n" if prompt else "")

    def decode(self, ids: Sequence[int]) -> str:
        """See `ChatFormat`."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def written(self, content: str) -> str:
        """See `ChatFormat`: the names of special tokens are broken by a space."""
        return plain_content(content)

    def encode_plain(self, text: str) -> list[int]:
        """See `ChatFormat`."""
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])

    def as_read(self, text: str) -> str:
        """See `ChatFormat`."""
        return self.decode(self.encode_plain(plain_content(text)))

    def count_controls(self, ids: Int64) -> int:
        """See `ChatFormat`."""
        return int(np.isin(ids, self._controls).sum())

    def encode_rendered(self, text: str) -> list[int]:
        """See `ChatFormat`."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _encoded(self, conversation: Conversation, ids: Int64, mask: np.ndarray) -> Encoded:
        # Every turn of the assistant is one run of the mask: it holds the end token at least, and a line end follows.
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
        runs = iter(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        notes: Counter[str] = Counter()
        turns = []
        learned = mask.copy()
        for number, message in enumerate(conversation.messages):
            content = message.get("content")
            if isinstance(content, str) and any(token in content for token in SPECIAL_TOKENS):
                notes["names_as_text"] = 1
            if message["role"] != ASSISTANT:
                continue
            first, end = next(runs)
            if message.get("train", True) is False:
                learned[first:end] = False
                continue
            text = plain_content(content) + END_OF_TURN
            turns.append(Turn(number, first, end, text))
            notes["trimmed"] += isinstance(content, str) and content != content.strip()
        return Encoded(ids, learned, tuple(turns), +notes)


def _problem(conversation: Conversation) -> RowRefused | None:
    """What the template would lose or refuse of a conversation."""
    if conversation.tools:
        return RowRefused(f"{conversation.named}: {OwnFormat.name} has no tools; choose another chat_template")
    for number, message in enumerate(conversation.messages):
        where = f"{conversation.named}: message {number + 1}"
        if message["role"] not in ROLES:
            roles = ", ".join(ROLES)
            return RowRefused(f"{where}: unknown role {message['role']!r}: {OwnFormat.name} has {roles}")
        if message.get("tool_calls"):
            return RowRefused(f"{where}: {OwnFormat.name} has no tool calls; choose another chat_template")
        try:
            plain_content(message.get("content"))
        except ValueError as error:
            return RowRefused(f"{where}: {error}")
    return None
