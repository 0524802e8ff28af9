"""Conversations and pairs of a user's own, cleared of evaluation items, among those that are made from the corpus."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from training.data.conversations.contamination import Contamination
from training.data.conversations.gathering import excerpt
from training.data.conversations.messages import ASSISTANT, USER
from training.data.reports import markdown_table
from training.data.tables import CONVERSATION_SCHEMA, PAIR_SCHEMA, fraction, text_id
from training.data.text.overlap import EvaluationItem
from training.specs.corpus import GENERAL
from training.specs.evaluation_sets import EvaluationSetsSection

GATHERED = "gathered"
"""The kind of a row that is of a user's own."""

_STRING_COLUMNS = ("source", "where", "format")
MIXED_CONVERSATION_SCHEMA = pa.schema(
    [*CONVERSATION_SCHEMA, *(pa.field(name, pa.string(), nullable=False) for name in ("tools", *_STRING_COLUMNS))]
)
MIXED_PAIR_SCHEMA = pa.schema(
    [
        *PAIR_SCHEMA,
        *(pa.field(name, pa.string(), nullable=False) for name in _STRING_COLUMNS),
        pa.field("as_messages", pa.bool_(), nullable=False),
    ]
)
"""`as_messages`: prompt, chosen and rejected are JSON lists of messages; readers take rows without this column too."""

_ANSWERS = ("chosen", "rejected")
_PROMPTS = ("harmful", "benign", "samples")
_MOST_HOLDERS = 3  # as the evaluation sets have it: what more rows hold is boilerplate
Row = dict[str, Any]


class EvaluationItems:
    """Says which of a user's rows hold an item of the evaluation sets.

    Questions and prompts count wherever they are. An answer of a held-out conversation or pair counts unless many rows
    hold it: a user's rows are of one kind, and one signature below every answer must not drop them all.

    Args:
        folder: The evaluation sets.
        section: What they were made by.
    """

    def __init__(self, folder: Path, section: Mapping[str, Any]) -> None:
        made_by = EvaluationSetsSection.model_validate(section)
        texts, prompts, answers = _items(folder)
        self._fixed = Contamination(texts, prompts, made_by.ngram, made_by.overlap)
        self._answers = Contamination(answers, (), made_by.ngram, made_by.overlap)

    def without(self, rows: Iterable[Row]) -> tuple[list[Row], int]:
        """The rows that hold no item, and the number of the others."""
        clean, total = [], 0
        held: dict[str, list[str]] = {}
        for row in rows:
            total += 1
            if self._fixed.overlaps(row):
                continue
            clean.append(row)
            if items := [overlap.item for overlap in self._answers.overlaps(row)]:
                held[row["id"]] = items

        holders = Counter(item for items in held.values() for item in items)
        gone = {row for row, items in held.items() if any(holders[item] <= _MOST_HOLDERS for item in items)}
        kept = [row for row in clean if row["id"] not in gone]
        return kept, total - len(kept)


def _items(folder: Path) -> tuple[list[EvaluationItem], list[EvaluationItem], list[EvaluationItem]]:
    """Texts that no row may hold, texts that no prompt may be, and answers of a user's own that no row may hold."""
    texts = [EvaluationItem(row["id"], row["text"]) for row in _lines(folder, "text")]
    prompts, answers = [], []
    for name in (*_PROMPTS, "questions", "preferences"):
        for row in _lines(folder, name):
            prompts.append(EvaluationItem(row["id"], row["prompt"]))
            right = row["choices"][row["answer"]] if "choices" in row else row.get("chosen")
            texts += [EvaluationItem(row["id"], text) for text in (row["prompt"], right) if text]

    for name, asked, answered in (("conversations", "messages", ("messages",)), ("pairs", "prompt", _ANSWERS)):
        for row in _lines(folder, name):
            prompts += [EvaluationItem(row["id"], text) for text in first_prompts(row[asked])]
            answers += [
                EvaluationItem(row["id"], message["content"])
                for part in answered
                for message in row[part]
                if message["role"] == ASSISTANT and message.get("train", True)
            ]
    return texts, prompts, answers


def first_prompts(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """The first question of a conversation, by which it is held out; nothing where it has none."""
    return [message["content"] for message in messages if message["role"] == USER][:1]


def _lines(folder: Path, name: str) -> list[Row]:
    """Rows of a file of the sets, which Gatehouse wrote and verified; none where a recipe has no such set."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def weighted(rows: Iterable[Row]) -> Iterator[Row]:
    """Each row as often as its weight says; of the fraction that is left over, as many rows by digest.

    Every copy has an id of its own, so that the order of ids mixes them.
    """
    for row in rows:
        copies = math.floor(row["weight"])
        copies += fraction("weight", row["id"]) < row["weight"] - copies
        for copy in range(copies):
            yield row if copy == 0 else {**row, "id": text_id(row["id"], str(copy))}


def gathered_conversation(row: Mapping[str, Any]) -> Row:
    """A row of `conversations` as one of `MIXED_CONVERSATION_SCHEMA`."""
    names = ("id", "messages", "tools", *_STRING_COLUMNS)
    return {**{name: row[name] for name in names}, "kind": GATHERED, "domain": GENERAL, "source_id": row["id"]}


def generated_conversation(row: Mapping[str, Any]) -> Row:
    """A row of `CONVERSATION_SCHEMA` as one of `MIXED_CONVERSATION_SCHEMA`; one that is so already stays."""
    return {**dict.fromkeys(("tools", *_STRING_COLUMNS), ""), **row}


def gathered_pair(row: Mapping[str, Any]) -> Row:
    """A row of `preferences` as one of `MIXED_PAIR_SCHEMA`."""
    names = ("id", "prompt", "chosen", "rejected", *_STRING_COLUMNS)
    return {**{name: row[name] for name in names}, "kind": GATHERED, "domain": GENERAL, "as_messages": True}


def generated_pair(row: Mapping[str, Any]) -> Row:
    """A row of `PAIR_SCHEMA` as one of `MIXED_PAIR_SCHEMA`."""
    roles = {"prompt": USER, "chosen": ASSISTANT, "rejected": ASSISTANT}
    turns = {
        name: json.dumps([{"role": role, "content": row[name]}], ensure_ascii=False) for name, role in roles.items()
    }
    return {**row, **turns, **dict.fromkeys(_STRING_COLUMNS, ""), "as_messages": True}


def is_gathered(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a user's own."""
    return bool(row["kind"] == GATHERED)


def sample_of_gathered(row: Mapping[str, Any]) -> dict[str, str]:
    """A conversation of a user's own as reports show it."""
    messages = json.loads(row["messages"])
    return {
        "kind": row["kind"],
        "domain": row["domain"],
        "prompt": excerpt(messages[:-1]),
        "answer": excerpt(messages[-1:]),
    }


def sample_of_pair(row: Mapping[str, Any]) -> dict[str, str]:
    """A pair as reports show it."""
    parts = {name: row[name] for name in ("prompt", *_ANSWERS)}
    if row.get("as_messages"):
        parts = {name: excerpt(json.loads(text)) for name, text in parts.items()}
    return {"kind": row["kind"], **parts}


def gathered_table(rows: Iterable[Mapping[str, Any]], unit: str, contaminated: int) -> list[str]:
    """Lines of a card about a user's rows by source and format, and how many hold evaluation items."""
    counts = Counter((row["source"], row["format"]) for row in rows if is_gathered(row))
    return [
        "",
        markdown_table(["source", "format", unit], [[*key, count] for key, count in sorted(counts.items())]),
        "",
        f"{contaminated} {unit} of the recipe's own were left out, because they hold items of the evaluation sets.",
    ]
