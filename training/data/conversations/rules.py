"""The recipe's rules for conversations: which roles may follow each other, and which turns are learned.

Every model gets the same conversations, so the rules are not those of a chat template.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.data.conversations.messages import ASSISTANT, SYSTEM, TOOL, USER, Message, RowProblem, is_answer
from training.specs.conversations import RolesRule

REPEATED, ASSISTANT_FIRST, STRAY_TOOL = "a role repeats", "begins with the assistant", "a tool answers no call"
NO_ANSWER, EMPTY_ANSWER, NOTHING_LEARNED = "no answer", "empty answer", "nothing to learn"
_BETWEEN = "\n\n"


class Dropped(Exception):
    """A row that a rule drops; the reason is its text."""


def orderly(messages: Sequence[Message], rule: RolesRule) -> list[Message]:
    """The messages in an order in which every template can have them.

    After system turns the user begins. No role but the tool's stands twice in a row, and a tool answers the assistant.

    Raises:
        RowProblem: They are in no such order, and the rule is to refuse or turns cannot be merged.
        Dropped: They are in no such order, and the rule is to drop.
    """
    kept: list[Message] = []
    for message in messages:
        before = kept[-1]["role"] if kept else None
        problem = _problem(message["role"], before)
        if not problem:
            kept.append(message)
        elif rule == "drop":
            raise Dropped(problem)
        elif rule == "refuse" or problem == STRAY_TOOL:
            raise RowProblem(f"{problem}; repair the row, or set roles of the recipe's conversations to merge or drop")
        elif problem == REPEATED:
            kept[-1] = _merged(kept[-1], message)
        # An answer before the first question is left out.
    return kept


def _problem(role: str, before: str | None) -> str:
    if role == TOOL:
        return "" if before in (ASSISTANT, TOOL) else STRAY_TOOL
    if role == ASSISTANT and before in (None, SYSTEM):
        return ASSISTANT_FIRST
    return REPEATED if role == before else ""


def _merged(first: Message, second: Message) -> Message:
    if first.get("train") is not second.get("train"):
        raise RowProblem("two turns of the assistant follow each other, and one of them is learned; they do not merge")
    content = _BETWEEN.join(text for text in (first["content"], second["content"]) if text.strip())
    calls = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    return {**first, "content": content, **({"tool_calls": calls} if calls else {})}


def answered(messages: Sequence[Message]) -> list[Message]:
    """The messages up to the last answer.

    Raises:
        Dropped: There is no answer, or no question before it.
    """
    last = max((place for place, message in enumerate(messages) if message["role"] == ASSISTANT), default=-1)
    if last < 0 or all(message["role"] != USER for message in messages[:last]):
        raise Dropped(NO_ANSWER)
    return list(messages[: last + 1])


def without_empty_answers(messages: Sequence[Message], rule: str) -> None:
    """Refuse or drop messages with an answer of nothing but blanks.

    Raises:
        RowProblem: There is one, and the rule is to refuse.
        Dropped: There is one, and the rule is to drop.
    """
    for number, message in enumerate(messages, start=1):
        if message["role"] == ASSISTANT and not is_answer(message):
            if rule == "refuse":
                raise RowProblem(
                    f"message {number} is an empty answer; repair the row, or set empty_answers of the recipe's "
                    "conversations to drop"
                )
            raise Dropped(EMPTY_ANSWER)


def with_learned(messages: Sequence[Message], train: str) -> list[Message]:
    """The messages with `train` decided; their keys are in one order.

    Args:
        messages: Those of a conversation.
        train: `all` answers are learned or the `last` one, where a message says nothing itself.

    Raises:
        Dropped: No turn is learned.
    """
    last = max((place for place, message in enumerate(messages) if message["role"] == ASSISTANT), default=-1)
    decided = []
    for place, message in enumerate(messages):
        plain: Message = {
            key: message[key] for key in ("role", "content", "tool_calls", "name", "tool_call_id") if key in message
        }
        if message["role"] == ASSISTANT:
            said = message.get("train")
            plain["train"] = (train == "all" or place == last) if said is None else said
        decided.append(plain)
    if not any(message.get("train") for message in decided):
        raise Dropped(NOTHING_LEARNED)
    return decided
