"""The forms in which people keep conversations, recognised by looking at each row.

| format | keys |
|---|---|
| `messages` | `messages` (or `conversations`) of `role` and `content`, as OpenAI has them |
| `sharegpt` | `conversations` (or `messages`) of `from` and `value` |
| `prompt_completion` | `prompt` and `completion`, each a text or messages; only the completion is learned |
| `alpaca` | `instruction`, `output`, and perhaps `input`, `history` |
| `question_answer` | `question` and `answer` |
| `plain_text` | `text` |

Each may have `system` and `tools` beside it. A plain text is one message of the assistant, learned whole: no template
belongs around it, and its row's `format` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.conversations.messages import (
    ASSISTANT,
    SYSTEM,
    USER,
    Message,
    RowProblem,
    content_text,
    is_messages,
    is_sharegpt,
    kind_of,
    messages_of,
    parsed_list,
    tools_of,
    turn,
)
from training.data.sources.bad_rows import MISSING, column_paths, field_of
from training.specs.conversations import PLAIN_TEXT

MESSAGES, SHAREGPT, ALPACA = "messages", "sharegpt", "alpaca"
PROMPT_COMPLETION, QUESTION_ANSWER = "prompt_completion", "question_answer"
_AUTO = "auto"
_SHOWN_KEYS = 20
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ParsedConversation:
    """A row as a conversation, before the recipe's rules.

    Attributes:
        format: The format that it was in.
        messages: In the one form of `messages`.
        tools: JSON text of the tools that it may call; empty for none.
    """

    format: str
    messages: list[Message]
    tools: str = ""


def conversation_of(
    value: object, format_: str = _AUTO, columns: Mapping[str, str] | None = None, unread: Counter[str] | None = None
) -> ParsedConversation:
    """The conversation that a row holds.

    Args:
        value: The row as it was read.
        format_: How it is held; `auto` recognises it.
        columns: Gatehouse's name of a column to the row's own.
        unread: Keys of messages that hold something and are not read are counted here.

    Raises:
        RowProblem: It holds none, or a malformed one.
    """
    row = mapped(value, columns or {})
    if format_ == _AUTO:
        format_ = _recognised(row, value, columns or {})
    else:
        _demand(row, format_, value)

    messages = _PARSERS[format_](row, unread)
    if format_ != PLAIN_TEXT:
        messages = with_system(row, messages)
    # The items say which of the two lists of messages it was.
    return ParsedConversation(_named(row, format_), messages, tools_of(row))


def mapped(value: object, columns: Mapping[str, str]) -> dict[str, Any]:
    """A row under Gatehouse's names of its columns, without the keys that are null.

    Raises:
        RowProblem: The row is no object.
    """
    if not isinstance(value, Mapping):
        raise RowProblem(f"is a JSON {type(value).__name__}, not an object; write each row as an object with keys")
    taken = {theirs if theirs in value else theirs.split(".")[0] for theirs in columns.values()}
    row = {key: item for key, item in value.items() if item is not None and key not in taken and key not in columns}
    for ours, theirs in columns.items():
        item = field_of(value, theirs)
        if item is not MISSING and item is not None:
            row[ours] = item
    return row


def shown_keys(value: object, columns: Mapping[str, str]) -> str:
    """The keys of a row as a message lists them, and the mapped ones that it lacks."""
    assert isinstance(value, Mapping)
    names = [
        f"{path} (null)" if field_of(value, path) is None else path for path in sorted(map(str, column_paths(value)))
    ]
    shown = ", ".join(names[:_SHOWN_KEYS]) or "nothing"
    lacks = [theirs for theirs in columns.values() if field_of(value, theirs) is MISSING]
    return shown + (f"; columns names {', '.join(lacks)}, which it lacks" if lacks else "")


def with_system(row: Row, messages: Sequence[Message]) -> list[Message]:
    """The messages after the row's own `system` text, where it has one and they do not begin with such a turn."""
    system = content_text(row.get("system"), "system") if "system" in row else ""
    if not system.strip() or (messages and messages[0]["role"] == SYSTEM):
        return list(messages)
    return [{"role": SYSTEM, "content": system}, *messages]


def answer(content: object, where: str, train: bool | None = None) -> Message:
    """A message of the assistant with text alone."""
    return {**turn(ASSISTANT, content, where), "train": train}


def prompt_of(value: object, key: str = "prompt") -> list[Message]:
    """A prompt as messages: a text is the user's; answers within it are not learned."""
    if not is_messages(value) and not isinstance(value, list):
        return [turn(USER, value, key)]
    return [
        {**message, "train": False} if message["role"] == ASSISTANT else message for message in messages_of(value, key)
    ]


def completion_of(value: object, key: str) -> list[Message]:
    """An answer as messages: a text is the assistant's.

    Raises:
        RowProblem: Messages do not begin with the assistant's.
    """
    value = [value] if isinstance(value, Mapping) else value
    if not is_messages(value) and not isinstance(value, list):
        return [answer(value, key)]
    messages = messages_of(value, key)
    if messages[0]["role"] != ASSISTANT:
        raise RowProblem(f"{key} begins with a turn of the {messages[0]['role']}, not of the assistant; repair the row")
    return messages


def demanded(row: Row, keys: Iterable[str], format_: str, value: object) -> None:
    """Refuse a row that lacks a key of the format that the recipe names.

    Raises:
        RowProblem: It lacks one.
    """
    lacking = [key for key in keys if key not in row]
    if lacking:
        raise RowProblem(
            f"has no {' and no '.join(lacking)}, as {format_} needs it, only {shown_keys(value, {})}; set format or "
            "columns of the source, or exclude the file"
        )


def _messages(row: Row, unread: Counter[str] | None) -> list[Message]:
    key = _list_key(row)
    return messages_of(row[key], key, unread)


def _list_key(row: Row) -> str:
    return "messages" if "messages" in row else "conversations"


def _prompt_completion(row: Row, unread: Counter[str] | None) -> list[Message]:
    prompt = prompt_of(row["prompt"])
    if prompt[-1]["role"] == ASSISTANT:
        raise RowProblem("prompt ends with a turn of the assistant, and the completion is the assistant's; repair it")
    return [*prompt, *completion_of(row["completion"], "completion")]


def _alpaca(row: Row, unread: Counter[str] | None) -> list[Message]:
    messages: list[Message] = []
    for number, pair in enumerate(parsed_list(row["history"], "history") if row.get("history") else [], start=1):
        where = f"history: turn {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowProblem(f"{where} is {kind_of(pair)}, not a list of a question and an answer; repair the row")
        messages += [turn(USER, pair[0], where), answer(pair[1], where)]

    instruction, more = content_text(row["instruction"], "instruction"), content_text(row.get("input"), "input")
    question = f"{instruction}\n\n{more}" if more.strip() else instruction
    return [*messages, turn(USER, question, "instruction"), answer(row["output"], "output")]


def _question_answer(row: Row, unread: Counter[str] | None) -> list[Message]:
    return [turn(USER, row["question"], "question"), answer(row["answer"], "answer")]


def _plain_text(row: Row, unread: Counter[str] | None) -> list[Message]:
    if not isinstance(row["text"], str):
        raise RowProblem(f"text is {kind_of(row['text'])}, not text; repair the row")
    return [answer(row["text"], "text", train=True)]


_PARSERS: dict[str, Callable[[Row, Counter[str] | None], list[Message]]] = {
    MESSAGES: _messages,
    SHAREGPT: _messages,
    PROMPT_COMPLETION: _prompt_completion,
    ALPACA: _alpaca,
    QUESTION_ANSWER: _question_answer,
    PLAIN_TEXT: _plain_text,
}
# In the order in which a row with the keys of several is read.
_KEYS = {
    PROMPT_COMPLETION: ("prompt", "completion"),
    ALPACA: ("instruction", "output"),
    QUESTION_ANSWER: ("question", "answer"),
    PLAIN_TEXT: ("text",),
}


def _recognised(row: Row, value: object, columns: Mapping[str, str]) -> str:
    if "messages" in row or "conversations" in row:
        return MESSAGES
    for format_, keys in _KEYS.items():
        if all(key in row for key in keys):
            return format_
    raise RowProblem(
        f"is in no known format of conversations; its keys are {shown_keys(value, columns)}. Set columns of the "
        "source, such as {question: ..., answer: ...}, or exclude the file"
    )


def _named(row: Row, format_: str) -> str:
    if format_ not in (MESSAGES, SHAREGPT):
        return format_
    return SHAREGPT if any(map(is_sharegpt, parsed_list(row[_list_key(row)], _list_key(row)))) else MESSAGES


def _demand(row: Row, format_: str, value: object) -> None:
    if format_ in (MESSAGES, SHAREGPT):
        if "messages" not in row and "conversations" not in row:
            demanded(row, ("messages",), format_, value)
        return
    demanded(row, _KEYS[format_], format_, value)
