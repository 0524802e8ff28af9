"""What a row of training data teaches: a conversation, or a pair's two, of which the assistant's turns are learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training.data.conversations.chat_format import Conversation
from training.data.conversations.messages import ASSISTANT, USER
from training.specs.conversations import PLAIN_TEXT

SIDES = ("chosen", "rejected")


def is_plain_text(row: Mapping[str, Any]) -> bool:
    """Whether a row is a text without a chat template around it, all of which is learned."""
    return row.get("format") == PLAIN_TEXT


def conversation_of(row: Mapping[str, Any], file: str) -> Conversation:
    """The conversation of a row of `instruction_data` or `adapter_data`.

    Args:
        row: With `id` and `messages`, and `tools` and `where` where it is of a user's own.
        file: Names the row in messages where nothing else does.
    """
    where = str(row.get("where") or f"{file}: {row['id']}")
    return Conversation(json.loads(row["messages"]), json.loads(row.get("tools") or "[]"), where)


def sides_of(row: Mapping[str, Any]) -> tuple[Conversation, Conversation]:
    """The conversations with the chosen and with the rejected answer of a row of `preference_data`.

    Args:
        row: `prompt`, `chosen` and `rejected` are texts, or JSON lists of messages by `as_messages`.
    """
    chosen, rejected = (Conversation([*_prompt(row), *_answer(row, side)], where=_named(row, side)) for side in SIDES)
    return chosen, rejected


def _prompt(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not row.get("as_messages"):
        return [{"role": USER, "content": row["prompt"]}]
    return [{**message, "train": False} for message in json.loads(row["prompt"])]


def _answer(row: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    if not row.get("as_messages"):
        return [{"role": ASSISTANT, "content": row[side]}]
    messages: list[dict[str, Any]] = json.loads(row[side])
    return messages


def _named(row: Mapping[str, Any], side: str) -> str:
    return f"{row['where']}: {side}" if row.get("where") else f"the {side} answer of the pair {row['id']}"
