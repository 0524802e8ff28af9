"""Measures `instruction_data`, `preference_data` and `adapter_data` against the held-out items."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.data.conversations.contamination import words_key
from training.data.conversations.messages import plain_answer
from training.data.tables import read_rows
from training.errors import InputRefused
from training.evaluation.json_lines import read_lines
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact
from training.specs.post_training_data import AdapterDataSection

_QUESTIONS = ("questions.jsonl",)
_SAFETY = ("harmful.jsonl", "benign.jsonl")
_PAIRS = ("preferences.jsonl",)


def measure_instruction_data(artifact: InputArtifact, evaluation_sets: InputArtifact) -> Measurement:
    """Conversations, refusals, and held-out prompts among the training prompts."""
    measurement = Measurement()
    rows = _conversations(artifact.folder / "train.parquet")
    measurement.add("conversations", len(rows), len(rows))
    measurement.add("refusals", sum(row["kind"] == "refusal" for row in rows), len(rows))
    _leaks(measurement, "leaked_questions", _prompts(rows), evaluation_sets, _QUESTIONS + _SAFETY)
    return measurement


def measure_preference_data(artifact: InputArtifact, evaluation_sets: InputArtifact) -> Measurement:
    """Pairs, pairs without a difference, and held-out prompts among the training prompts."""
    measurement = Measurement()
    rows = list(read_rows(artifact.folder / "train.parquet"))
    measurement.add("pairs", len(rows), len(rows))

    identical = [row for row in rows if plain_answer(row["chosen"]) == plain_answer(row["rejected"])]
    for row in identical:
        measurement.fail("identical_pairs", row["id"], 1.0, prompt=row["prompt"][:120])
    measurement.add("identical_pairs", len(identical), len(rows))

    prompts = (row["prompt"] for row in rows)
    _leaks(measurement, "leaked_prompts", prompts, evaluation_sets, _QUESTIONS + _SAFETY + _PAIRS)
    return measurement


def measure_adapter_data(artifact: InputArtifact, evaluation_sets: InputArtifact) -> Measurement:
    """Documents and conversations of the domain, and held-out questions among the training prompts."""
    measurement = Measurement()
    domain = AdapterDataSection.model_validate(artifact.manifest.section).domain
    documents = [row["domain"] for row in read_rows(artifact.folder / "documents.parquet", ["domain"])]
    rows = _conversations(artifact.folder / "train.parquet")
    measurement.add("documents", documents.count(domain), len(documents))
    measurement.add("conversations", sum(row["domain"] == domain for row in rows), len(rows))
    _leaks(measurement, "leaked_questions", _prompts(rows), evaluation_sets, _QUESTIONS)
    return measurement


def _conversations(path: Path) -> list[dict[str, Any]]:
    """Rows with their messages parsed; each conversation has a prompt and an answer.

    Raises:
        InputRefused: A row has none, or no messages at all.
    """
    rows = list(read_rows(path))
    for row in rows:
        try:
            row["messages"] = json.loads(row["messages"])
            roles = [message["role"] for message in row["messages"] if message["content"].strip()]
        except (ValueError, TypeError, KeyError) as error:
            raise InputRefused(f"{path}: {row['id']} holds no messages ({error}); materialize it again") from error
        if "assistant" not in roles or "user" not in roles:
            raise InputRefused(f"{path}: {row['id']} has no prompt or no answer; materialize it again")
    return rows


def _prompts(rows: list[dict[str, Any]]) -> Iterable[str]:
    return (message["content"] for row in rows for message in row["messages"] if message["role"] == "user")


def _leaks(
    measurement: Measurement,
    metric: str,
    prompts: Iterable[str],
    evaluation_sets: InputArtifact,
    names: tuple[str, ...],
) -> None:
    """Record the held-out items of these files whose prompt is among the training prompts."""
    training_keys = {words_key(prompt) for prompt in prompts}
    items = [row for name in names for row in read_lines(evaluation_sets.folder / name)]
    leaked = [row for row in items if words_key(row["prompt"]) in training_keys]
    for row in leaked:
        measurement.fail(metric, str(row["id"]), 1.0, prompt=row["prompt"][:120])
    measurement.add(metric, len(leaked), len(items))
