"""Tries a chat format on every role and feature that the data use, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from training.data.conversations.chat_format import ASSISTANT, ChatFormat, Conversation, RowRefused, check
from training.data.conversations.foreign_format import ForeignFormat
from training.data.conversations.spans import Words
from training.data.conversations.template_process import TemplateRefused

_ROLE = "role "
_PLAIN_ROLES = ("user", ASSISTANT)


@dataclass(frozen=True)
class ProbeReport:
    """What is worth knowing about a chat format that can be used.

    Attributes:
        added_system: Text of the template's own in front of a conversation, which the data did not write.
        added_before_answer: What it puts before the last answer, and what is not learned unless asked for.
        prompt_is_prefix: Whether the ids of a prompt are the first ids of the same conversation with its answer.
        prompt_differs: Where they are not: how both go on, as text.
        starts: Start tokens at the beginning of a conversation.
        reads_date: Whether the template asks for today's date, which is fixed.
    """

    added_system: str
    added_before_answer: str
    prompt_is_prefix: bool
    prompt_differs: tuple[str, str] | None
    starts: int
    reads_date: bool


def features_of(conversations: Iterable[Conversation]) -> frozenset[str]:
    """The roles and features that conversations use, such as `role system`, `tool calls` or `two users in a row`."""
    features: set[str] = set()
    for conversation in conversations:
        roles = [str(message["role"]) for message in conversation.messages]
        features.update(_ROLE + role for role in roles if role not in _PLAIN_ROLES)
        features.update("tools" for _ in conversation.tools[:1])
        features.update("tool calls" for message in conversation.messages if message.get("tool_calls"))
        spoken = [role for role in roles if role not in ("system", "developer")]
        features.update("assistant first" for role in spoken[:1] if role == ASSISTANT)
        features.update("two users in a row" for pair in pairwise(spoken) if pair == ("user",) * 2)
        features.update("two answers in a row" for pair in pairwise(spoken) if pair == (ASSISTANT,) * 2)
        features.update("system later" for role in roles[1:] if role == "system")
    return frozenset(features)


def probe_template(chat_format: ChatFormat, features: Iterable[str]) -> ProbeReport:
    """Encode a conversation of marked words for every feature, and look for the words.

    Args:
        chat_format: The format.
        features: As `features_of` names them.

    Raises:
        TemplateRefused: The template refuses or loses something; the message names each role or feature.
    """
    problems = []
    for feature in sorted({"", *features}):
        conversation = _conversation(feature, Words().word)
        try:
            (encoded,) = chat_format.encode([conversation])
            check(chat_format, conversation, encoded)
            if conversation.tools:
                _tools_are_there(chat_format, conversation)
        except RowRefused as error:
            problems.append(str(error))
    if problems:
        raise TemplateRefused(
            f"{chat_format.name} cannot be used for these conversations: {'; '.join(problems)}. Choose another "
            "chat_template, or leave such conversations out"
        )
    return _report(chat_format)


def _conversation(feature: str, word: Callable[[int], str]) -> Conversation:
    question, answer = {"role": "user", "content": word(0)}, {"role": ASSISTANT, "content": word(1)}
    more = {"role": "user", "content": word(2)}
    call = {
        "id": "a00000001",
        "type": "function",
        "function": {"name": f"f{word(3)}", "arguments": {"a": word(4)}},
    }
    calling = {"role": ASSISTANT, "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": word(5), "name": f"f{word(3)}", "tool_call_id": "a00000001"}
    role = feature.removeprefix(_ROLE)
    tool = {"type": "function", "function": {"name": word(6), "description": word(7), "parameters": _PARAMETERS}}
    turns: dict[str, list[dict[str, Any]]] = {
        "": [question, answer, more, {**answer, "content": word(8)}],
        "tools": [question, answer],
        "tool calls": [question, calling],
        _ROLE + "tool": [question, calling, result, answer],
        "assistant first": [answer, question, {**answer, "content": word(8)}],
        "two users in a row": [question, more, answer],
        "two answers in a row": [question, answer, {**answer, "content": word(8)}],
        "system later": [
            question,
            answer,
            {"role": "system", "content": word(5)},
            more,
            {**answer, "content": word(8)},
        ],
    }
    messages = turns.get(feature, [{"role": role, "content": word(5)}, question, answer])
    return Conversation(messages, [tool] if feature == "tools" else (), feature or "questions and answers")


_PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "description": "b"}}, "required": ["a"]}


def _tools_are_there(chat_format: ChatFormat, conversation: Conversation) -> None:
    text = chat_format.render(conversation.messages, tools=conversation.tools)
    function = conversation.tools[0]["function"]
    for key in ("name", "description"):
        if function[key] not in text:
            raise RowRefused(f"{conversation.named}: {chat_format.name} leaves out the {key} of a tool")


def _report(chat_format: ChatFormat) -> ProbeReport:
    conversation = _conversation("", Words().word)
    (encoded,) = chat_format.encode([conversation])
    prompt = chat_format.prompt(conversation.messages[:-1])
    ids = encoded.ids.tolist()
    is_prefix = ids[: len(prompt)] == prompt.tolist()
    shared = next((n for n, pair in enumerate(zip(ids, prompt.tolist(), strict=False)) if pair[0] != pair[1]), 0)
    differs = (chat_format.decode(prompt[shared:].tolist()), chat_format.decode(ids[shared : shared + 16]))
    leading = 0
    while chat_format.start is not None and ids[leading : leading + 1] == [chat_format.start]:
        leading += 1
    return ProbeReport(
        chat_format.frame.added_system if isinstance(chat_format, ForeignFormat) else "",
        chat_format.added_before_answer,
        is_prefix,
        None if is_prefix else differs,
        leading,
        "strftime_now" in chat_format.template,
    )
