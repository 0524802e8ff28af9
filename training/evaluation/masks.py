"""The mask as evidence: what is learned of every row, told from its token ids and not from how they came to be.

Ids and mask are decoded and held against the row's messages, and against what the tokenizer's folder makes of these:
its `chat_template.jinja` is the one that leaves with the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.conversations.chat_format import ChatFormat, Conversation, Encoded, RowRefused, is_learned, says
from training.data.conversations.chat_template import TEMPLATE_FILE
from training.data.conversations.named_templates import marks_learned
from training.data.conversations.spans import THOUGHTS
from training.data.conversations.template_process import Request, TemplateProcess, TemplateRefused
from training.data.tokens.shards import Int64
from training.evaluation.measurement import Measurement
from training.tokenizer_folder import load_tokenizer

UNLEARNED_ROWS = "rows_without_learned_token"
UNLEARNED_ENDS = "answers_without_learned_end"
OTHER_ROLES = "learned_tokens_of_other_roles"
TEMPLATE = "template_differences"
METRICS = (UNLEARNED_ROWS, UNLEARNED_ENDS, OTHER_ROLES, TEMPLATE)
_BATCH = 2_000
_SHOWN = 160


@dataclass(frozen=True)
class Lesson:
    """One row of training data.

    Attributes:
        id: The row's.
        conversations: What it teaches: one conversation, or a pair's two.
    """

    id: str
    conversations: tuple[Conversation, ...]


def measure_masks(measurement: Measurement, tokenizer: Path, lessons: Sequence[Lesson], texts: int) -> None:
    """Measure `METRICS` on every row.

    Args:
        measurement: Takes the metrics, and each fault with its row.
        tokenizer: The tokenizer's folder.
        lessons: The rows, but for plain texts.
        texts: Number of plain texts: all of them is learned, and no template is used.
    """
    counts: Counter[str] = Counter()
    try:
        if lessons:
            _measure(measurement, tokenizer, lessons, counts)
    except (TemplateRefused, OSError) as error:
        for metric in METRICS:
            measurement.leave_out(metric, f"the chat template cannot be used: {error}")
        return

    conversations = sum(len(lesson.conversations) for lesson in lessons)
    answers = sum(
        map(is_learned, (message for lesson in lessons for one in lesson.conversations for message in one.messages))
    )
    items = (len(lessons) + texts, answers, counts["learned"], conversations)
    for metric, count in zip(METRICS, items, strict=True):
        measurement.add(metric, counts[metric], count)


def _measure(measurement: Measurement, tokenizer: Path, lessons: Sequence[Lesson], counts: Counter[str]) -> None:
    """Count faults by metric, and `learned` tokens."""
    chat_format = ChatFormat.of(load_tokenizer(tokenizer))  # as a training has it
    exported = ExportedTemplate(chat_format, tokenizer / TEMPLATE_FILE)

    for start in range(0, len(lessons), _BATCH):
        batch = [(lesson, one) for lesson in lessons[start : start + _BATCH] for one in lesson.conversations]
        encoded = chat_format.encode_each([conversation for _, conversation in batch])
        refused: dict[str, str] = {}
        read: list[tuple[str, Conversation, Encoded]] = []
        for (lesson, conversation), one in zip(batch, encoded, strict=True):
            if isinstance(one, RowRefused) or not one.learned.any():
                refused.setdefault(
                    lesson.id,
                    str(one) if isinstance(one, RowRefused) else f"{conversation.named}: no turn of it is learned",
                )
            if isinstance(one, Encoded):
                read.append((lesson.id, conversation, one))
                counts["learned"] += int(one.learned.sum())

        for row, reason in refused.items():
            counts[UNLEARNED_ROWS] += 1
            measurement.fail(UNLEARNED_ROWS, row, 1.0, reason=reason)
        differences = exported.differences([(conversation, one) for _, conversation, one in read])
        for (row, conversation, one), difference in zip(read, differences, strict=True):
            found = {**mask_faults(chat_format, conversation, one), TEMPLATE: int(bool(difference))}
            for metric, count in found.items():
                counts[metric] += count
                if count:
                    shown = difference if metric == TEMPLATE else _learned_text(chat_format, one)
                    measurement.fail(metric, row, float(count), where=conversation.named, text=shown[:_SHOWN])


def mask_faults(chat_format: ChatFormat, conversation: Conversation, encoded: Encoded) -> dict[str, int]:
    """Answers to learn whose end token is not learned, and learned tokens that are of no answer to learn."""
    answers = [number for number, message in enumerate(conversation.messages) if is_learned(message)]
    next_answer = ends = others = 0
    for places in _runs(encoded, chat_format.stops):
        ids = encoded.ids[places]
        has_end = int(ids[-1]) in chat_format.stops
        content = ids[:-1] if has_end else ids
        following = range(next_answer, len(answers))
        answer = next((n for n in following if says(chat_format, conversation.messages[answers[n]], content)), None)
        if answer is None:
            others += len(ids)
            continue
        ends += answer - next_answer + (not has_end)
        others += max(0, _prompt_end(chat_format, conversation, encoded, answers[answer]) - int(places[0]))
        next_answer = answer + 1
    return {UNLEARNED_ENDS: ends + len(answers) - next_answer, OTHER_ROLES: others}


def _prompt_end(chat_format: ChatFormat, conversation: Conversation, encoded: Encoded, number: int) -> int:
    """Tokens that stand before an answer whoever gives it; 0 where the text of the answer tells already.

    A thought or a tool call stands in a template's own words, so such an answer is only looked for in what is learned.
    That must not begin before the answer does, in the heading or in the question.
    """
    message = conversation.messages[number]
    thinks = any(message.get(key) for key in THOUGHTS)
    if not message.get("tool_calls") and not thinks:
        return 0
    try:
        opening = chat_format.render(conversation.messages[:number], prompt=True, tools=conversation.tools)
    except RowRefused:  # the template takes no opening here; the encoder has found the turn by itself
        return 0
    added = "" if thinks or chat_format.learns_added else chat_format.added_before_answer
    prompt = np.array(chat_format.encode_rendered(opening + added), np.int64)
    size = min(len(prompt), len(encoded.ids))
    differs = np.flatnonzero(prompt[:size] != encoded.ids[:size])
    return int(differs[0]) if len(differs) else size


def _runs(encoded: Encoded, stops: Sequence[int]) -> Iterator[Int64]:
    """Places of the learned parts of a conversation, int64 [length] each; an end token ends one."""
    places = np.flatnonzero(encoded.learned)
    cuts = np.flatnonzero((np.diff(places) > 1) | np.isin(encoded.ids[places[:-1]], stops)) + 1
    yield from (run for run in np.split(places, cuts) if len(run))


def _learned_text(chat_format: ChatFormat, encoded: Encoded) -> str:
    return " ... ".join(chat_format.decode(encoded.ids[places].tolist()) for places in _runs(encoded, ()))


class ExportedTemplate:
    """The chat template of a folder, as anybody uses it who loads that folder.

    Args:
        chat_format: What training uses.
        path: The folder's template.
    """

    def __init__(self, chat_format: ChatFormat, path: Path) -> None:
        self._chat_format = chat_format
        template = path.read_text(encoding="utf-8")
        if marks_learned(template):
            raise TemplateRefused(f"{path.name} holds {{% generation %}}, a tag that only transformers can parse")
        self._process = TemplateProcess(template, path.name, chat_format.variables)

    def differences(self, rows: Sequence[tuple[Conversation, Encoded]]) -> Iterator[str]:
        """How the ids of each conversation differ from those that training uses; empty where they do not.

        Texts that hold names of control tokens stay text in training, so of such rows the texts are compared. Blanks
        do not count there, because a tokenizer may put one between a token and a text.

        Raises:
            TemplateRefused: The template takes too much time or memory.
        """
        requests = [
            Request(self._chat_format.as_rendered(conversation), conversation.tools, where=conversation.named)
            for conversation, _ in rows
        ]
        for (_, encoded), rendering in zip(rows, self._process.render(requests), strict=True):
            if rendering.error:
                yield f"it refuses the row: {rendering.error}"
                continue
            ids = np.array(self._chat_format.encode_rendered(rendering.text), np.int64)
            trained, exported = (self._chat_format.decode(one.tolist()) for one in (encoded.ids, ids))
            if encoded.notes.get("names_as_text"):
                differs = "".join(trained.split()) != "".join(exported.split())
            else:
                differs = not np.array_equal(encoded.ids, ids)
            if differs:
                yield f"trained {_around(trained, exported)!r}, exported {_around(exported, trained)!r}"
            else:
                yield ""


def _around(text: str, other: str) -> str:
    """Where a text begins to differ from another one."""
    same = next(
        (place for place, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other))
    )
    return text[max(0, same - 20) : same + 40]
