"""Measures `instruction_data`, `preference_data` and `adapter_data` against the held-out items."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.data.tables import read_rows
from training.data.text.similarity import normalised_words
from training.errors import InputRefused
from training.evaluation.corpora import read_lines
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact
from training.specs.post_training_data import AdapterDataSection

_QUESTIONS = ("questions.jsonl",)
_SAFETY = ("harmful.jsonl", "benign.jsonl")
_PAIRS = ("preferences.jsonl",)


def measure_instruction_data(artifact: InputArtifact, evaluation_sets: InputArtifact) -> Measurement:
    """Conversations, refusals, and held-out prompts among the training prompts."""
    found = Measurement()
    rows = _conversations(artifact.folder / "train.parquet")
    found.add("conversations", len(rows), len(rows))
    found.add("refusals", sum(row["kind"] == "refusal" for row in rows), len(rows))
    _leaks(found, "leaked_questions", _prompts(rows), evaluation_sets, _QUESTIONS + _SAFETY)
    return found


def measure_preference_data(artifact: InputArtifact, evaluation_sets: InputArtifact) -> Measurement:
    """Pairs, pairs without a difference, and held-out prompts among the training prompts."""
    found = Measurement()
    rows = list(read_rows(artifact.folder / "train.parquet"))
    found.add("pairs", len(rows), len(rows))
    identical = [row for row in rows if _plain(row["chosen"]) == _plain(row["rejected"])]
    for row in identical:
        found.fail("identical_pairs", row["id"], 1.0, prompt=row["prompt"][:120])
    found.add("identical_pairs", len(identical), len(rows))
    _leaks(found, "leaked_prompts", (row["prompt"] for row in rows), evaluation_sets, _QUESTIONS + _SAFETY + _PAIRS)
    return found


def measure_adapter_data(artifact: InputArtifact, evaluation_sets: InputArtifact) -> Measurement:
    """Documents and conversations of the domain, and held-out questions among the training prompts."""
    found = Measurement()
    domain = AdapterDataSection.model_validate(artifact.manifest.section).domain
    documents = [row["domain"] for row in read_rows(artifact.folder / "documents.parquet", ["domain"])]
    rows = _conversations(artifact.folder / "train.parquet")
    found.add("documents", documents.count(domain), len(documents))
    found.add("conversations", sum(row["domain"] == domain for row in rows), len(rows))
    _leaks(found, "leaked_questions", _prompts(rows), evaluation_sets, _QUESTIONS)
    return found


def _conversations(path: Path) -> list[dict[str, Any]]:
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


def _plain(answer: str) -> str:
    return " ".join(unicodedata.normalize("NFC", answer).split())


def _key(prompt: str) -> str:
    """A prompt without case, punctuation and white space; as it is where nothing else is left."""
    return " ".join(normalised_words(prompt)) or prompt


def _leaks(
    found: Measurement, metric: str, prompts: Iterable[str], evaluation_sets: InputArtifact, names: tuple[str, ...]
) -> None:
    training = {_key(prompt) for prompt in prompts}
    items = [row for name in names for row in read_lines(evaluation_sets.folder / name)]
    leaked = [row for row in items if _key(row["prompt"]) in training]
    for row in leaked:
        found.fail(metric, str(row["id"]), 1.0, prompt=row["prompt"][:120])
    found.add(metric, len(leaked), len(items))
