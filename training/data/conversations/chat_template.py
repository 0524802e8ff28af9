"""The chat templates, and the fast way from conversations to token ids that agrees with them.

A turn is `<|role|>\\n{content}<|end|>\\n`. Contents are stripped, and the names of special tokens in them are broken by
a space, in the templates as well as here: no content can open or close a turn. A content may be text, a number,
nothing, or a list of parts `{"type": "text", "text": ...}`. The texts of parts are joined.

Two templates render the same text. `chat_template.jinja` holds the one that every Jinja can parse. The other,
`training`, marks what the model learns by transformers' own tag `{% generation %}`: the assistant's content and its
`<|end|>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.tokens.shards import Bool, Int64
from training.specs.tokenizer import ASSISTANT, END_OF_TURN, SPECIAL_TOKENS, SYSTEM, USER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
TEMPLATE_FILE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_ESCAPES = {token: f"{token[0]} {token[1:]}" for token in SPECIAL_TOKENS}
# The templates are bytes of every tokenizer and model: a name in them, too, is not changed lightly.
_FILTERS = "".join(f"|replace('{token}', '{escape}')" for token, escape in _ESCAPES.items())
_TEXT_OF_CONTENT = (
    "{%- set given = message['content'] -%}"
    "{%- set found = namespace(text='') -%}"
    "{%- if given is string or given is number -%}"
    "{%- set found.text = given|string -%}"
    "{%- elif given is mapping -%}"
    "{{- raise_exception('a content is text, a number, or a list of parts of text') -}}"
    "{%- elif given is defined and given is not none -%}"
    "{%- for part in given -%}"
    "{%- if part is string -%}"
    "{%- set found.text = found.text ~ part -%}"
    "{%- elif part['type'] == 'text' -%}"
    "{%- set found.text = found.text ~ (part['text']|string if part['text'] is not none else '') -%}"
    "{%- else -%}"
    "{{- raise_exception('a part of a content is of the type ' ~ part['type'] ~ '; only text is understood') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- set content = found.text" + _FILTERS + "|trim -%}"
)


def _template(before_learned: str, after_learned: str) -> str:
    """The template, with something before and after what the model learns."""
    content = "{{- content ~ '" + END_OF_TURN + "' -}}"
    opening = "{{- '" + ASSISTANT + "\\n' -}}"
    parts = (
        "{%- for message in messages -%}",
        "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}",
        "{{- raise_exception('unknown role ' ~ message['role'] ~ '; use system, user or assistant') -}}",
        "{%- endif -%}",
        _TEXT_OF_CONTENT,
        "{{- '<|' ~ message['role'] ~ '|>\\n' -}}",
        "{%- if message['role'] == 'assistant' -%}",
        before_learned + content + after_learned,
        "{%- else -%}",
        content,
        "{%- endif -%}",
        "{{- '\\n' -}}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}" + opening + "{%- endif -%}",
    )
    return "".join(parts)


CHAT_TEMPLATE = _template("", "")
TRAINING_TEMPLATE = _template("{%- generation -%}", "{%- endgeneration -%}")
TEMPLATES = {"default": CHAT_TEMPLATE, "training": TRAINING_TEMPLATE}
"""As transformers names them when it loads a folder."""


def write_templates(folder: Path) -> None:
    """Write both templates where transformers looks for them."""
    (folder / TEMPLATE_FILE).write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / MORE_TEMPLATES).mkdir()
    (folder / MORE_TEMPLATES / "training.jinja").write_text(TRAINING_TEMPLATE, encoding="utf-8")


def plain_content(content: object) -> str:
    """A message's content as the templates write it: its text, stripped, special tokens' names broken by a space.

    Raises:
        ValueError: The content is not a text, a number, a list of parts of text, or None.
    """
    text = _text(content)
    for token, escape in _ESCAPES.items():
        text = text.replace(token, escape)
    return text.strip()


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str | int | float):
        return str(content)
    if isinstance(content, list | tuple):
        return "".join(_part(part) for part in content)
    raise ValueError(f"a content is text, a number, or a list of parts of text, not {type(content).__name__}")


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text":
        return _text(part.get("text"))
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ValueError(f"a part of a content is of the type {kind}; only text is understood")


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = False
) -> tuple[Int64, Bool]:
    """Token ids of one conversation, the same as `apply_chat_template` gives.

    Args:
        tokenizer: A fast tokenizer with this module's special tokens.
        messages: `role` (system, user or assistant) and `content` each; the module's docstring says what may be a
            content.
        add_generation_prompt: End with the opening of the assistant's turn.

    Returns:
        `input_ids` int64 [length] and `assistant_mask` bool [length]: the assistant's content and its end of turn.

    Raises:
        ValueError: An unknown role, or a content that is not text.
    """
    return encode_conversations(tokenizer, [messages], add_generation_prompt)[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = False
) -> list[tuple[Int64, Bool]]:
    """`encode_conversation` for many conversations at once, on all of the tokenizer's threads.

    Args:
        tokenizer: As in `encode_conversation`.
        conversations: The messages of each.
        add_generation_prompt: End each with the opening of the assistant's turn.

    Returns:
        `input_ids` int64 [length] and `assistant_mask` bool [length] of each.

    Raises:
        ValueError: An unknown role, or a content that is not text.
    """
    # Contents are tokenized by themselves: neither a special token nor the line's end before a content joins with it.
    contents = [plain_content(message.get("content")) for messages in conversations for message in messages]
    *contents_ids, newline = (
        np.array(ids, np.int64)
        for ids in tokenizer(
            [*contents, "\n"],
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
    )
    encoded = iter(contents_ids)
    end = np.array([tokenizer.convert_tokens_to_ids(END_OF_TURN)], np.int64)
    opening = {
        role: np.concatenate([[tokenizer.convert_tokens_to_ids(token)], newline]).astype(np.int64)
        for role, token in ROLES.items()
    }

    results = []
    for messages in conversations:
        parts: list[Int64] = []
        learned: list[bool] = []
        for message in messages:
            role = message["role"]
            if role not in opening:
                raise ValueError(f"unknown role {role!r}; use system, user or assistant")
            is_answer = role == "assistant"
            parts += [opening[role], next(encoded), end, newline]
            learned += [False, is_answer, is_answer, False]
        if add_generation_prompt:
            parts.append(opening["assistant"])
            learned.append(False)

        ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
        results.append((ids, np.repeat(np.array(learned, np.bool_), [len(part) for part in parts])))
    return results
