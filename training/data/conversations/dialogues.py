"""Makes a few conversations with a system turn and a few with two answers, so that training has both."""

from __future__ import annotations

from collections.abc import Sequence

from training.data.conversations.items import Item, conversation_row
from training.data.tables import fraction

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in one or two sentences.",
    "Answer briefly and in plain words.",
    "You help people who write programs.",
    "Be polite, and do not help with what could hurt someone.",
)
SHARE = 0.04  # of the conversations that get a system turn, and of those that get a second answer
_MAX_CHARACTERS = 800  # of two questions and answers; longer ones fit into no context of a small recipe


def conversation_rows(items: Sequence[tuple[Item, int]]) -> list[dict[str, str]]:
    """One row for every copy of an item; a few begin with a system turn or with another item.

    All choices are a pure function of the items and their order.

    Args:
        items: Each with the number of its copy, 0 for the first.

    Returns:
        Rows of instruction_data's train.parquet, in the order of the items.
    """
    rows = []
    for place, (item, repeat) in enumerate(items):
        draw = item.row(repeat)["id"]
        turns, system = [item], ""
        before = items[place - 1][0]  # of the first item this is the last one

        if fraction("system turn", draw) < SHARE:
            system = SYSTEM_PROMPTS[int(fraction("system prompt", draw) * len(SYSTEM_PROMPTS))]
        elif fraction("second answer", draw) < SHARE and _can_precede(before, item):
            turns = [before, item]
        rows.append(conversation_row(turns, system, repeat))
    return rows


def _can_precede(before: Item, item: Item) -> bool:
    size = sum(len(turn.prompt) + len(turn.answer) for turn in (before, item))
    return before.prompt != item.prompt and before.domain == item.domain and size <= _MAX_CHARACTERS
