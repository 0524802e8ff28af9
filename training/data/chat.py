"""The chat template, and the fast way from conversations to token ids that agrees with it.

A turn is `<|role|>\\n{content}<|end|>\\n`. Contents are stripped, and the names of special tokens in them are broken by
a space, in the template as well as here: no content can open or close a turn. What the model learns, and what
`{% generation %}` marks, is the assistant's content and its `<|end|>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.data.shards import Bool, Int64
from training.specs.tokenizer import ASSISTANT, END_OF_TURN, SPECIAL_TOKENS, SYSTEM, USER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_ESCAPES = {token: f"{token[0]} {token[1:]}" for token in SPECIAL_TOKENS}
_FILTERS = "".join(f"|replace('{token}', '{escape}')" for token, escape in _ESCAPES.items())
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ '; use system, user or assistant') -}}"
    "{%- endif -%}"
    "{%- set content = message['content']" + _FILTERS + "|trim -%}"
    "{{- '<|' ~ message['role'] ~ '|>\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- content ~ '" + END_OF_TURN + "' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- content ~ '" + END_OF_TURN + "' -}}"
    "{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + ASSISTANT + "\\n' -}}{%- endif -%}"
)


def plain_content(content: str) -> str:
    """A message's content as the template writes it: stripped, special tokens' names broken by a space."""
    for token, escape in _ESCAPES.items():
        content = content.replace(token, escape)
    return content.strip()


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message],
                        add_generation_prompt: bool = False) -> tuple[Int64, Bool]:
    """Token ids of one conversation, the same as `apply_chat_template` gives.

    Args:
        tokenizer: A fast tokenizer with this module's special tokens.
        messages: `role` (system, user or assistant) and `content` each.
        add_generation_prompt: End with the opening of the assistant's turn.

    Returns:
        `input_ids` int64 [length] and `assistant_mask` bool [length]: the assistant's content and its end of turn.

    Raises:
        ValueError: An unknown role.
    """
    return encode_conversations(tokenizer, [messages], add_generation_prompt)[0]


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]],
                         add_generation_prompt: bool = False) -> list[tuple[Int64, Bool]]:
    """`encode_conversation` for many at once, with the tokenizer's threads."""
    contents = [plain_content(message["content"]) for messages in conversations for message in messages]
    *contents_ids, newline = (np.array(ids, np.int64) for ids in tokenizer(
        [*contents, "\n"], add_special_tokens=False, padding=False, truncation=False, return_attention_mask=False,
        return_token_type_ids=False, verbose=False)["input_ids"])
    encoded = iter(contents_ids)
    end = np.array([tokenizer.convert_tokens_to_ids(END_OF_TURN)], np.int64)
    opening = {role: np.concatenate([[tokenizer.convert_tokens_to_ids(token)], newline]).astype(np.int64)
               for role, token in ROLES.items()}
    out = []
    for messages in conversations:
        parts: list[Int64] = []
        learned: list[bool] = []
        for message in messages:
            role = message["role"]
            if role not in opening:
                raise ValueError(f"unknown role {role!r}; use system, user or assistant")
            answer = role == "assistant"
            parts += [opening[role], next(encoded), end, newline]
            learned += [False, answer, answer, False]
        if add_generation_prompt:
            parts.append(opening["assistant"])
            learned.append(False)
        mask = np.repeat(np.array(learned, np.bool_), [len(part) for part in parts])
        out.append((np.concatenate(parts) if parts else np.empty(0, np.int64), mask))
    return out
