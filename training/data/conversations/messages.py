"""One message of a conversation in the one form that Gatehouse knows, whatever form it came in.

A message is `{"role", "content", "tool_calls"?, "name"?, "tool_call_id"?, "train"?}` with its keys in this order. The
role is `system`, `user`, `assistant` or `tool`. The content is always text. `train` stands on the assistant's messages
alone and says whether they are learned; None until the recipe's rule decides.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.data.sources.bad_rows import MAX_DOCUMENT_BYTES, unclean

Message = dict[str, Any]
SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
_OPENAI_ROLES = {
    "system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL, "function": TOOL,
}  # fmt: skip
FUNCTION_CALL = "function_call"
_SHAREGPT_ROLES = {
    "system": SYSTEM, "human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT, "observation": TOOL,
    "tool": TOOL, FUNCTION_CALL: ASSISTANT,
}  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text")
_SPEAKERS = {"role", "from"}
_READ_KEYS = {
    "role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", "train", "weight",
}  # fmt: skip


class RowProblem(ValueError):
    """What is wrong with a row, and what to do; the reader puts file and row before it."""


def is_sharegpt(message: object) -> bool:
    """Whether a message says who speaks with `from`."""
    return isinstance(message, Mapping) and "from" in message and "role" not in message


def is_messages(value: object) -> bool:
    """Whether a value is a list of messages, or the JSON text of one; a text may begin with a bracket by itself."""
    if isinstance(value, str):
        if not value.lstrip().startswith("[{"):
            return False
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return isinstance(value, list) and all(isinstance(item, Mapping) and item.keys() & _SPEAKERS for item in value)


def messages_of(value: object, key: str, unread: Counter[str] | None = None) -> list[Message]:
    """A list of messages in OpenAI's or ShareGPT's form.

    Args:
        value: The list, or its JSON text, as a CSV file holds it.
        key: The row's key, for messages.
        unread: Keys of messages that hold something and are not read are counted here.

    Raises:
        RowProblem: It is none.
    """
    items = parsed_list(value, key)
    if not items:
        raise RowProblem(f"{key} is empty; a conversation has at least a question and an answer. Remove the row")
    messages = []
    for number, item in enumerate(items, start=1):
        where = f"{key}: message {number}"
        if not isinstance(item, Mapping):
            raise RowProblem(f"{where} is {kind_of(item)}, not an object; write it with the keys role and content")
        messages.append(_sharegpt(item, where) if is_sharegpt(item) else _openai(item, where))
        if unread is not None:
            unread.update(name for name in item if name not in _READ_KEYS and item[name] not in (None, "", [], {}))
    return messages


def parsed_list(value: object, key: str) -> list[Any]:
    """A list, or what its JSON text says."""
    parsed = value
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
    if not isinstance(parsed, list):
        raise RowProblem(f"{key} is {kind_of(parsed)}, not a list; repair the row or map the column that holds it")
    return parsed


def turn(role: str, content: object, where: str) -> Message:
    """A message of text alone."""
    return {"role": role, "content": content_text(content, where)}


def _openai(item: Mapping[str, Any], where: str) -> Message:
    role = item.get("role")
    if role is None:
        raise RowProblem(f"{where} has no role, only {', '.join(map(str, item)) or 'nothing'}; add it")
    if not isinstance(role, str) or role not in _OPENAI_ROLES:
        raise RowProblem(f"{where} has the role {role!r}; known are {', '.join(_OPENAI_ROLES)}. Rename it")
    return _message(_OPENAI_ROLES[role], item, item.get("content"), _calls(item, where), where)


def _sharegpt(item: Mapping[str, Any], where: str) -> Message:
    speaker = item["from"]
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise RowProblem(f"{where} is from {speaker!r}; known are {', '.join(_SHAREGPT_ROLES)}. Rename it")
    content, calls = item.get("value", item.get("content")), _calls(item, where)
    if speaker == FUNCTION_CALL:
        calls, content = [*calls, *_tool_calls(_json_of(content, where), where)], ""
    return _message(_SHAREGPT_ROLES[speaker], item, content, calls, where)


def _message(role: str, item: Mapping[str, Any], content: object, calls: list[Any], where: str) -> Message:
    if calls and role != ASSISTANT:
        raise RowProblem(f"{where} has tool calls, and only the assistant calls tools; repair the row")
    if role == ASSISTANT and content is None and not calls:
        raise RowProblem(f"{where} has neither content nor a tool call; add the answer or remove the row")

    text = tool_text(content, where) if role == TOOL else content_text(content, where)
    message: Message = {"role": role, "content": text}
    if calls:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if item.get(key) not in (None, ""):
            message[key] = _clean(str(item[key]), f"{where}: {key}")
    if role == ASSISTANT:
        message["train"] = _trained(item, where)
    return message


def _trained(item: Mapping[str, Any], where: str) -> bool | None:
    """What a message itself says about being learned; None where it says nothing."""
    said = {key: item[key] for key in ("train", "weight") if item.get(key) is not None}
    for key, value in said.items():
        if value not in (0, 1):  # True and 1.0 equal 1
            raise RowProblem(f"{where}: {key} is {value!r}; a turn is learned or not, so write 0 or 1")
    if len({bool(value) for value in said.values()}) > 1:
        raise RowProblem(f"{where}: train and weight say opposite things; remove one of them")
    return bool(next(iter(said.values()))) if said else None


def content_text(content: object, where: str) -> str:
    """A content as text: null is empty, and parts of text are joined.

    Raises:
        RowProblem: It holds something else than text.
    """
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_part_text(part, where) for part in content)
    if not isinstance(content, str):
        raise RowProblem(f"{where} is {kind_of(content)}, not text; repair the row")
    return _clean(content, where)


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return _clean(part, where)
    kind = part.get("type", "text") if isinstance(part, Mapping) else kind_of(part)
    if not isinstance(part, Mapping) or kind not in _TEXT_PARTS:
        raise RowProblem(f"{where} has a part of type {kind}; only text is read, so remove the part or the row")
    return content_text(part.get("text"), where)


def tool_text(content: object, where: str) -> str:
    """What a tool answered, as text; an object is written as JSON."""
    is_parts = isinstance(content, list) and all(isinstance(part, Mapping) and "type" in part for part in content)
    if isinstance(content, dict | list | bool | int | float) and not is_parts:
        return to_json(content, where)
    return content_text(content, where)


def _calls(item: Mapping[str, Any], where: str) -> list[Any]:
    calls = item.get("tool_calls")
    found = _tool_calls(parsed_list(calls, f"{where}: tool_calls"), where) if calls else []
    if item.get("function_call"):  # OpenAI's name before there was more than one call
        found += _tool_calls([item["function_call"]], where)
    return found


def _tool_calls(value: object, where: str) -> list[Any]:
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise RowProblem(f"{where}: a tool call names no function; write it with the keys name and arguments")

        arguments = function.get("arguments", {})
        if isinstance(arguments, str) and arguments.strip():
            arguments = _json_of(arguments, f"{where}: the arguments of {name}")
        arguments = arguments or {}
        if not isinstance(arguments, Mapping):
            raise RowProblem(
                f"{where}: the arguments of {name} are {kind_of(arguments)}, not an object; repair the row"
            )
        identity = {"id": _clean(str(call["id"]), where)} if call.get("id") not in (None, "") else {}
        calls.append(
            {**identity, "type": "function", "function": {"name": _clean(name, where), "arguments": dict(arguments)}}
        )
    if not calls:
        raise RowProblem(f"{where}: a tool call is empty; remove it")
    to_json(calls, where)
    return calls


def tools_of(row: Mapping[str, Any]) -> str:
    """The row's tools as JSON text with their own keys in their own order; empty where it has none.

    Raises:
        RowProblem: They are no list of objects.
    """
    tools = row.get("tools")
    functions = row.get("functions")
    if tools in (None, "", [], "[]") and functions not in (None, "", [], "[]"):
        tools = [{"type": "function", "function": function} for function in parsed_list(functions, "functions")]
    if tools in (None, "", [], "[]"):
        return ""
    listed = parsed_list(tools, "tools")
    if not all(isinstance(tool, Mapping) for tool in listed):
        raise RowProblem("tools holds something else than objects; describe each tool as an object")
    return to_json(listed, "tools") if listed else ""


def to_json(value: object, where: str = "the row") -> str:
    """JSON text that keeps the order of keys.

    Raises:
        RowProblem: It holds a number that JSON cannot write or text that UTF-8 cannot. It is nested too deeply, or
            longer than any document may be.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError, TypeError) as error:
        raise RowProblem(f"{where} cannot be written as JSON ({error}); repair the row") from error
    if len(text) > MAX_DOCUMENT_BYTES:
        raise RowProblem(f"{where} is longer than {MAX_DOCUMENT_BYTES >> 20} MB; split it")
    _clean(text, where)
    return text


def _json_of(value: object, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowProblem(f"{where} is no JSON ({error}); repair the row") from error


def _clean(text: str, where: str) -> str:
    if problem := unclean(text):
        raise RowProblem(f"{where} {problem}")
    if len(text) > MAX_DOCUMENT_BYTES:
        raise RowProblem(f"{where} is longer than {MAX_DOCUMENT_BYTES >> 20} MB; split it")
    return text


def kind_of(value: object) -> str:
    """What a value is, in the words of a message."""
    if value is None:
        return "null"
    return {"str": "text", "dict": "an object", "list": "a list", "bool": "a truth value"}.get(
        type(value).__name__, type(value).__name__
    )


def is_answer(message: Message) -> bool:
    """Whether the assistant says something in it or calls a tool."""
    return bool(message["role"] == ASSISTANT and (message["content"].strip() or message.get("tool_calls")))


def plain_answer(answer: str) -> str:
    """An answer without what blanks alone make different: in NFC, each run of white space one blank."""
    return " ".join(unicodedata.normalize("NFC", answer).split())


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same: NFC, without case, each run of white space one blank."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", prompt).casefold())
    return " ".join(folded.split())


def first_prompt(messages: Sequence[Message]) -> str:
    """The key of the first question, by which a row is held out; of the first message where there is no question."""
    user = next((message for message in messages if message["role"] == USER), messages[0])
    return prompt_key(user["content"])


def turns_key(messages: Iterable[Message], key: Any = prompt_key) -> str:
    """What makes two lists of messages the same; who is to learn a turn does not count."""
    parts = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls", ())]
        parts.append([message["role"], key(message["content"]), *([calls] if calls else [])])
    return json.dumps(parts, ensure_ascii=False)
