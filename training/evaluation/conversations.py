"""Measures `instruction_data`, `preference_data` and `adapter_data` against the held-out items."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.data.conversations.contamination import words_key
from training.data.conversations.lessons import conversation_of, is_plain_text, sides_of
from training.data.conversations.messages import ASSISTANT, USER, plain_answer, turns_key
from training.data.conversations.mixing import first_prompts
from training.data.tables import read_rows
from training.errors import InputRefused
from training.evaluation.json_lines import read_lines
from training.evaluation.masks import Lesson, measure_masks
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact
from training.specs.post_training_data import AdapterDataSection

_FILE = "train.parquet"
_QUESTIONS = ("questions.jsonl",)
_SAFETY = ("harmful.jsonl", "benign.jsonl")
_PAIRS = ("preferences.jsonl",)
_HELD_OUT = ("conversations.jsonl", "pairs.jsonl")  # of the recipe's own, where it has some


def measure_instruction_data(
    artifact: InputArtifact, evaluation_sets: InputArtifact, tokenizer: InputArtifact
) -> Measurement:
    """Conversations, refusals, held-out prompts among the training prompts, and what is learned of each row."""
    measurement = Measurement()
    rows = _conversations(artifact.folder / _FILE)
    measurement.add("conversations", len(rows), len(rows))
    measurement.add("refusals", sum(row["kind"] == "refusal" for row in rows), len(rows))
    _leaks(measurement, "leaked_questions", _prompts(rows), evaluation_sets, _QUESTIONS + _SAFETY + _HELD_OUT)
    _masks(measurement, tokenizer, rows)
    return measurement


def measure_preference_data(
    artifact: InputArtifact, evaluation_sets: InputArtifact, tokenizer: InputArtifact
) -> Measurement:
    """Pairs, pairs without a difference, held-out prompts among the training prompts, and what is learned of each."""
    measurement = Measurement()
    rows = list(read_rows(artifact.folder / _FILE))
    measurement.add("pairs", len(rows), len(rows))

    identical = [row for row in rows if _answer_key(row, "chosen") == _answer_key(row, "rejected")]
    for row in identical:
        measurement.fail("identical_pairs", row["id"], 1.0, prompt=row["prompt"][:120])
    measurement.add("identical_pairs", len(identical), len(rows))

    prompts = (prompt for row in rows for prompt in _pair_prompts(row))
    _leaks(measurement, "leaked_prompts", prompts, evaluation_sets, _QUESTIONS + _SAFETY + _PAIRS + _HELD_OUT)
    measure_masks(measurement, tokenizer.folder / "tokenizer", [Lesson(row["id"], sides_of(row)) for row in rows], 0)
    return measurement


def _answer_key(row: dict[str, Any], side: str) -> str:
    return turns_key(json.loads(row[side]), plain_answer) if row.get("as_messages") else plain_answer(row[side])


def _pair_prompts(row: dict[str, Any]) -> list[str]:
    if not row.get("as_messages"):
        return [row["prompt"]]
    return [message["content"] for message in json.loads(row["prompt"]) if message["role"] == USER]


def measure_adapter_data(
    artifact: InputArtifact, evaluation_sets: InputArtifact, tokenizer: InputArtifact
) -> Measurement:
    """Documents and conversations of the domain, held-out questions among the training prompts, and what is learned."""
    measurement = Measurement()
    domain = AdapterDataSection.model_validate(artifact.manifest.section).domain
    documents = [row["domain"] for row in read_rows(artifact.folder / "documents.parquet", ["domain"])]
    rows = _conversations(artifact.folder / _FILE)
    if documents:
        measurement.add("documents", documents.count(domain), len(documents))
    else:
        measurement.leave_out("documents", "the recipe has no sources of documents")
    measurement.add("conversations", sum(row["domain"] == domain for row in rows), len(rows))
    _leaks(measurement, "leaked_questions", _prompts(rows), evaluation_sets, _QUESTIONS + _HELD_OUT)
    _masks(measurement, tokenizer, rows)
    return measurement


def _masks(measurement: Measurement, tokenizer: InputArtifact, rows: list[dict[str, Any]]) -> None:
    lessons = [Lesson(row["id"], (conversation_of(row, _FILE),)) for row in rows if not is_plain_text(row)]
    measure_masks(measurement, tokenizer.folder / "tokenizer", lessons, len(rows) - len(lessons))


def _conversations(path: Path) -> list[dict[str, Any]]:
    """Rows with their messages as `turns`; each conversation has a prompt and an answer, and a plain text its text.

    Raises:
        InputRefused: A row has none, or no messages at all.
    """
    rows = list(read_rows(path))
    for row in rows:
        try:
            row["turns"] = json.loads(row["messages"])
            roles = {
                message["role"] for message in row["turns"] if message["content"].strip() or message.get("tool_calls")
            }
        except (ValueError, TypeError, KeyError) as error:
            raise InputRefused(f"{path}: {row['id']} holds no messages ({error}); materialize it again") from error
        needed = {ASSISTANT} if is_plain_text(row) else {ASSISTANT, USER}
        if not needed <= roles:
            raise InputRefused(f"{path}: {row['id']} has no prompt or no answer; materialize it again")
    return rows


def _prompts(rows: list[dict[str, Any]]) -> Iterable[str]:
    return (message["content"] for row in rows for message in row["turns"] if message["role"] == "user")


def _leaks(
    measurement: Measurement,
    metric: str,
    prompts: Iterable[str],
    evaluation_sets: InputArtifact,
    names: tuple[str, ...],
) -> None:
    """Record the held-out items of these files whose prompt is among the training prompts."""
    training_keys = {words_key(prompt) for prompt in prompts}
    items = [
        (str(row["id"]), prompt)
        for name in names
        if name not in _HELD_OUT or (evaluation_sets.folder / name).is_file()
        for row in read_lines(evaluation_sets.folder / name)
        for prompt in _held_out_prompts(row)
    ]
    leaked = [(item, prompt) for item, prompt in items if words_key(prompt) in training_keys]
    for item, prompt in leaked:
        measurement.fail(metric, item, 1.0, prompt=prompt[:120])
    measurement.add(metric, len(leaked), len(items))


def _held_out_prompts(row: dict[str, Any]) -> list[str]:
    """The prompt of an item; of a conversation or pair of the recipe's own, the first question."""
    prompt = row.get("prompt", row.get("messages"))
    return [prompt] if isinstance(prompt, str) else first_prompts(prompt or [])
