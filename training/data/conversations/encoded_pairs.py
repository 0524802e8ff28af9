"""Preference pairs as token ids: one prompt, and the chosen and the rejected answer to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.conversations.chat_format import ChatFormat, Conversation, Encoded, RowRefused, check
from training.data.conversations.encoded_rows import LeftOut, refuse_unknown_ids
from training.data.conversations.lessons import sides_of
from training.data.conversations.template_probe import features_of, probe_template
from training.errors import RecipeError
from training.specs.post_training import TooLong


@dataclass(frozen=True)
class Pair:
    """One encoded pair; prompt and answer together are a conversation.

    Attributes:
        id: The row's.
        prompt: Token ids that both conversations begin with, up to the first learned one.
        chosen: Token ids of the better answer and its end of turn.
        rejected: The same of the worse one.
        given: Places in `chosen` and in `rejected` that are not learned, such as what a tool said between two turns.
    """

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    given: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two conversations."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def tokens(self) -> int:
        """Tokens of both conversations."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def learned_of_chosen(self) -> int:
        """Learned tokens of the better answer."""
        return len(self.chosen) - len(self.given[0])


def encode_pairs(
    chat_format: ChatFormat,
    rows: Sequence[dict[str, Any]],
    context: int,
    log: Callable[[str], None],
    embedding: int | None = None,
    too_long: TooLong = "turns",
) -> tuple[list[Pair], LeftOut]:
    """Encode pairs by the chat template; pairs longer than the context are left out and counted.

    A pair of the recipe's own that is too long follows the recipe's rule; by `turns` it loses whole turns from the
    front of its prompt first. No answer is cut.

    Args:
        chat_format: How conversations become token ids.
        rows: `id`, `prompt`, `chosen` and `rejected` of each pair: texts, or JSON lists of messages by `as_messages`.
        context: Most tokens of a prompt with one answer.
        log: Called with a line when some are shortened or left out.
        embedding: Number of token ids that the model has; None for any.
        too_long: The rule of the recipe.

    Raises:
        TemplateRefused: The chat format loses what pairs hold.
        RowRefused: A pair cannot be encoded, or teaches something else than its answers.
        InputRefused: A pair holds a token that the model does not have.
        RecipeError: No pair fits.
    """
    asked = [sides_of(row) for row in rows]
    probe_template(chat_format, features_of(side for sides in asked for side in sides))
    pairs = dict(enumerate(_encode(chat_format, rows, asked, embedding)))

    shortened: set[int] = set()
    own = [number for number, pair in pairs.items() if pair.longest > context and rows[number].get("format")]
    if own and too_long == "refuse":
        longest = pairs[own[0]].longest
        raise RowRefused(f"{asked[own[0]][0].named}: it has {longest} tokens, and the context has {context}")
    ways = {number: _shorter_prompts(rows[number]) for number in own if too_long == "turns"}
    while ways:
        tried = {number: row for number, way in ways.items() if (row := next(way, None)) is not None}
        shorter = _encode(chat_format, list(tried.values()), [sides_of(row) for row in tried.values()], embedding)
        fitting = {number: pair for number, pair in zip(tried, shorter, strict=True) if pair.longest <= context}
        pairs |= fitting
        shortened |= set(fitting)
        ways = {number: ways[number] for number in tried if number not in fitting}

    kept = [pair for pair in pairs.values() if pair.longest <= context]
    if not kept:
        raise RecipeError(
            f"none of the {len(pairs)} preference pairs fits into the context of {context} tokens; raise "
            "dpo_model.context"
        )

    left_out = LeftOut("pairs", len(pairs) - len(kept), len(pairs))
    if shortened:
        log(f"{len(shortened)} of {left_out.of} pairs lost the first turns of their prompts to fit")
    if left_out.count:
        log(f"{left_out.count} of {left_out.of} pairs are longer than the context of {context} tokens and are left out")
    return kept, left_out


def _shorter_prompts(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pair without the first turns of its prompt, fewer each time; instructions stay, a user's turn comes first."""
    prompt = json.loads(row["prompt"])
    first = next((number for number, message in enumerate(prompt) if message["role"] != "system"), len(prompt))
    for number in range(first + 1, len(prompt)):
        if prompt[number]["role"] == "user":
            yield {**row, "prompt": json.dumps([*prompt[:first], *prompt[number:]])}


def _encode(
    chat_format: ChatFormat,
    rows: Sequence[Mapping[str, Any]],
    asked: Sequence[tuple[Conversation, Conversation]],
    embedding: int | None,
) -> list[Pair]:
    """Each pair, whatever its length."""
    flat = [side for sides in asked for side in sides]
    encoded = chat_format.encode(flat)
    for conversation, side in zip(flat, encoded, strict=True):
        check(chat_format, conversation, side)
        if embedding is not None:
            refuse_unknown_ids(side.ids, embedding, conversation.named)
    return [_pair(str(row["id"]), *encoded[2 * number : 2 * number + 2]) for number, row in enumerate(rows)]


def _pair(row_id: str, chosen: Encoded, rejected: Encoded) -> Pair:
    # A token over the border belongs to an answer, so one answer of the two may begin a token earlier. A template may
    # also write something else before each of the two.
    start = min(int(np.argmax(side.learned)) for side in (chosen, rejected))
    differs = np.flatnonzero(chosen.ids[:start] != rejected.ids[:start])
    start = int(differs[0]) if len(differs) else start

    answers: list[list[int]] = []
    given: list[tuple[int, ...]] = []
    for side in (chosen, rejected):
        end = int(np.flatnonzero(side.learned)[-1]) + 1
        answers.append(side.ids[start:end].tolist())
        given.append(tuple(np.flatnonzero(~side.learned[start:end]).tolist()))
    return Pair(row_id, chosen.ids[:start].tolist(), answers[0], answers[1], (given[0], given[1]))
