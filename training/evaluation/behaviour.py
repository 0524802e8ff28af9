"""What one model does on the evaluation sets: scores and generated texts, not yet judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import InputRefused
from training.evaluation.generation import Completion, Sampling, generate
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Likelihood, TextScore, score_answers, score_texts
from training.specs.evaluation import EvaluationSection

GENERAL = "general"
_QUESTIONS_ANSWERED = 64
_CONTINUATIONS = 64
_PREFIX = 32
_STRIDE = 256

Row = dict[str, Any]


@dataclass(frozen=True)
class Sets:
    """The evaluation sets; a file that is absent is empty, and what needs it is not measured.

    Attributes:
        domain: The domain that an adapter is for; empty for every other model.
    """

    text: list[Row]
    questions: list[Row]
    harmful: list[Row]
    benign: list[Row]
    preferences: list[Row]
    samples: list[Row]
    domain: str = ""

    def texts(self, domain: str = GENERAL) -> list[Row]:
        """Held-out documents of a domain."""
        return [row for row in self.text if row["domain"] == domain]

    def asked(self, general: bool) -> list[Row]:
        """Four-way questions of the general domain, or of all others."""
        return [row for row in self.questions if (row["domain"] == GENERAL) == general]


def read_sets(folder: Path, domain: str = "") -> Sets:
    """The evaluation sets of an artifact's folder.

    Args:
        domain: The domain that the adapter to be judged is for.

    Raises:
        InputRefused: A file holds something else than JSON objects.
    """
    names = ("text", "questions", "harmful", "benign", "preferences", "samples")
    return Sets(**{name: _rows(folder / f"{name}.jsonl") for name in names}, domain=domain)


def _rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], start=1):
        try:
            rows += [dict(json.loads(line))] if line.strip() else []
        except ValueError as error:
            raise InputRefused(f"{path}:{number} is not a JSON object; materialize evaluation_sets again") from error
    return rows


@dataclass(frozen=True)
class Parts:
    """Which parts of the evaluation a model goes through."""

    general: bool = False
    domain: bool = False
    right_answers: bool = False
    preferences: bool = False
    safety: bool = False
    continuations: bool = False


OWN = {
    "base_model": Parts(general=True, continuations=True),
    "sft_model": Parts(general=True, right_answers=True, safety=True),
    "dpo_model": Parts(general=True, right_answers=True, safety=True, preferences=True),
    "lora_model": Parts(general=True, domain=True, right_answers=True, safety=True),
}
PARENTS = {
    "sft_model": ("base_model", Parts(right_answers=True)),
    "dpo_model": ("sft_model", Parts(preferences=True)),
    "lora_model": ("dpo_model", Parts(general=True, domain=True)),
}


@dataclass(frozen=True)
class Measurement:
    """Scores and texts of one model.

    Attributes:
        vocabulary: Number of tokens.
        parts: Which parts were measured.
        general: Passage to its score, general held-out text; see `document_of`.
        domain: The same for the other domains' text.
        right: General question's id to the likelihood of its right answer.
        pairs: Preference id to the likelihoods of the chosen and the rejected answer.
        replies: Prompt to what the model answers.
        continuations: Place in a held-out document to the text before it and how the model goes on.
    """

    vocabulary: int
    parts: Parts
    general: dict[str, TextScore] = field(default_factory=dict)
    domain: dict[str, TextScore] = field(default_factory=dict)
    right: dict[str, Likelihood] = field(default_factory=dict)
    pairs: dict[str, tuple[Likelihood, Likelihood]] = field(default_factory=dict)
    replies: dict[str, Completion] = field(default_factory=dict)
    continuations: dict[str, tuple[str, Completion]] = field(default_factory=dict)


def measure(
    loaded: LoadedModel, sets: Sets, parts: Parts, section: EvaluationSection, seed: int, chat_scoring: bool
) -> Measurement:
    """Run the named parts; the sample prompts are answered in any case.

    Args:
        loaded: The model.
        sets: What to measure it on.
        parts: What to run.
        section: Context, batch and length limits.
        seed: For the base model's continuations, the only texts that are drawn and not greedy.
        chat_scoring: Put questions through the chat template when answers are scored. A base model that is the
            reference of its chat model is scored in the chat format too, so that both see the same tokens.
    """
    return Measurement(
        vocabulary=loaded.vocabulary,
        parts=parts,
        general=_texts(loaded, sets.texts() if parts.general else [], section),
        domain=_texts(loaded, sets.texts(sets.domain) if parts.domain else [], section),
        right=_right_answers(loaded, sets.asked(general=True) if parts.right_answers else [], section, chat_scoring),
        pairs=_pairs(loaded, sets.preferences if parts.preferences else [], section, chat_scoring),
        replies=_replies(loaded, _prompts(sets, parts), section),
        continuations=_continuations(loaded, sets.texts(), section, seed) if parts.continuations else {},
    )


def _texts(loaded: LoadedModel, rows: list[Row], section: EvaluationSection) -> dict[str, TextScore]:
    scores = score_texts(loaded, [row["text"] for row in rows], section.batch, section.context)
    return {
        f"{row['id']}:{start}": score for row, found in zip(rows, scores, strict=True) for start, score in found.items()
    }


def document_of(passage: str) -> str:
    """Id of a passage's document; after it a passage's id has the character that it begins with."""
    return passage.rpartition(":")[0]


def _right_answers(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection, chat: bool
) -> dict[str, Likelihood]:
    pairs = [(row["prompt"], row["choices"][row["answer"]]) for row in rows]
    found = score_answers(loaded, pairs, chat, section.batch, section.context)
    return {row["id"]: score for row, score in zip(rows, found, strict=True)}


def _pairs(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection, chat: bool
) -> dict[str, tuple[Likelihood, Likelihood]]:
    asked = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    found = iter(score_answers(loaded, asked, chat, section.batch, section.context))
    return {row["id"]: (next(found), next(found)) for row in rows}


def stop_prompts(sets: Sets) -> dict[str, str]:
    """Prompts whose answers are looked at for how they end, by id: samples, safety prompts, some held-out questions."""
    rows = [*sets.samples, *sets.harmful, *sets.benign, *sets.asked(general=True)[:_QUESTIONS_ANSWERED]]
    ids: dict[str, str] = {}
    for row in rows:
        ids.setdefault(row["prompt"], row["id"])
    return {key: prompt for prompt, key in ids.items()}


def _prompts(sets: Sets, parts: Parts) -> list[str]:
    return list(stop_prompts(sets).values()) if parts.safety else [row["prompt"] for row in sets.samples]


def _replies(loaded: LoadedModel, prompts: Iterable[str], section: EvaluationSection) -> dict[str, Completion]:
    asked = list(dict.fromkeys(prompts))
    chat = loaded.asset != "base_model"
    tokens = [loaded.prompt(prompt, chat)[-section.context :] for prompt in asked]
    return dict(zip(asked, generate(loaded, tokens, section.max_new_tokens, section.batch), strict=True))


def _continuations(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection, seed: int
) -> dict[str, tuple[str, Completion]]:
    """Continuations of 32 tokens of held-out text: the beginnings of all documents, then places further in.

    An id names the document, the token and the text, so that models with other tokenizers share no items.
    """
    starts: list[tuple[int, int, list[int]]] = []
    for number, row in enumerate(rows):
        tokens = loaded.encode(row["text"])
        starts += [
            (at, number, [loaded.start, *tokens[at : at + _PREFIX]]) for at in range(0, len(tokens) - _PREFIX, _STRIDE)
        ]
    chosen = sorted(starts)[:_CONTINUATIONS]
    found = generate(loaded, [prefix for _, _, prefix in chosen], section.max_new_tokens, section.batch, Sampling(seed))
    texts = [loaded.decode(prefix) for _, _, prefix in chosen]
    return {
        f"{rows[number]['id']}@{at}-{hashlib.sha256(text.encode()).hexdigest()[:8]}": (text, completion)
        for (at, number, _), text, completion in zip(chosen, texts, found, strict=True)
    }
