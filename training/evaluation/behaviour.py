"""What one model does on the evaluation sets: scores and generated texts, not yet judged."""

from __future__ import annotations

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
_OTHER_QUESTIONS = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class Sets:
    """The evaluation sets; a file that is absent is empty, and what needs it is not measured."""

    text: list[Row]
    questions: list[Row]
    harmful: list[Row]
    benign: list[Row]
    preferences: list[Row]
    samples: list[Row]

    def texts(self, general: bool) -> list[Row]:
        """Held-out documents of the general domain, or of all others."""
        return [row for row in self.text if (row["domain"] == GENERAL) == general]

    def asked(self, general: bool) -> list[Row]:
        """Four-way questions of the general domain, or of all others."""
        return [row for row in self.questions if (row["domain"] == GENERAL) == general]


def read_sets(folder: Path) -> Sets:
    """The evaluation sets of an artifact's folder.

    Raises:
        InputRefused: A file holds something else than JSON objects.
    """
    return Sets(*(_rows(folder / f"{name}.jsonl")
                  for name in ("text", "questions", "harmful", "benign", "preferences", "samples")))


def _rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            rows.append(dict(json.loads(line)))
        except ValueError as error:
            raise InputRefused(f"{path}:{number} is not a JSON object; materialize evaluation_sets again") from error
    return rows


@dataclass(frozen=True)
class Parts:
    """Which parts of the evaluation a model goes through."""

    general: bool = False
    domain: bool = False
    choices: bool = False
    right_answers: bool = False
    preferences: bool = False
    safety: bool = False
    continuations: bool = False


OWN = {
    "base_model": Parts(general=True, choices=True, continuations=True),
    "sft_model": Parts(general=True, choices=True, safety=True),
    "dpo_model": Parts(general=True, choices=True, safety=True, preferences=True),
    "lora_model": Parts(general=True, domain=True, choices=True, safety=True),
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
        general: Document id to its score, general held-out text.
        domain: The same for the other domains' text.
        choices: Question id to the likelihoods of its choices.
        priors: Question id to the mean nats per token of its choices after other questions.
        right: Question id to the likelihood of its right answer.
        pairs: Preference id to the likelihoods of the chosen and the rejected answer.
        replies: Prompt to what the model answers.
        continuations: Beginnings of held-out documents, each with how the model goes on.
    """

    vocabulary: int
    general: dict[str, TextScore] = field(default_factory=dict)
    domain: dict[str, TextScore] = field(default_factory=dict)
    choices: dict[str, list[Likelihood]] = field(default_factory=dict)
    priors: dict[str, list[float]] = field(default_factory=dict)
    right: dict[str, Likelihood] = field(default_factory=dict)
    pairs: dict[str, tuple[Likelihood, Likelihood]] = field(default_factory=dict)
    replies: dict[str, Completion] = field(default_factory=dict)
    continuations: list[tuple[str, Completion]] = field(default_factory=list)


def measure(loaded: LoadedModel, sets: Sets, parts: Parts, section: EvaluationSection, seed: int,
            chat_scoring: bool) -> Measurement:
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
    chooses = [row for row in sets.questions if parts.choices]
    choices = _choices(loaded, chooses, section, chat_scoring)
    right = {row["id"]: choices[row["id"]][row["answer"]] for row in chooses}
    if parts.right_answers:
        right = _right_answers(loaded, sets.asked(general=True), section, chat_scoring)
    return Measurement(
        vocabulary=loaded.vocabulary,
        general=_texts(loaded, sets.texts(general=True) if parts.general else [], section),
        domain=_texts(loaded, sets.texts(general=False) if parts.domain else [], section),
        choices=choices, priors=_priors(loaded, chooses, section, chat_scoring), right=right,
        pairs=_pairs(loaded, sets.preferences if parts.preferences else [], section, chat_scoring),
        replies=_replies(loaded, _prompts(sets, parts), section),
        continuations=_continuations(loaded, sets.texts(general=True), section, seed) if parts.continuations else [])


def _texts(loaded: LoadedModel, rows: list[Row], section: EvaluationSection) -> dict[str, TextScore]:
    scores = score_texts(loaded, [row["text"] for row in rows], section.batch, section.context)
    return {row["id"]: score for row, score in zip(rows, scores, strict=True)}


def _choices(loaded: LoadedModel, rows: list[Row], section: EvaluationSection,
             chat: bool) -> dict[str, list[Likelihood]]:
    pairs = [(row["prompt"], choice) for row in rows for choice in row["choices"]]
    found = iter(score_answers(loaded, pairs, chat, section.batch, section.context))
    return {row["id"]: [next(found) for _ in row["choices"]] for row in rows}


def _priors(loaded: LoadedModel, rows: list[Row], section: EvaluationSection, chat: bool) -> dict[str, list[float]]:
    """What each choice's tokens get after the next questions, which have nothing to do with it."""
    others = {row["id"]: [rows[(number + step) % len(rows)]["prompt"] for step in range(1, _OTHER_QUESTIONS + 1)]
              for number, row in enumerate(rows)}
    pairs = [(prompt, choice) for row in rows for choice in row["choices"] for prompt in others[row["id"]]]
    found = iter(score_answers(loaded, pairs, chat, section.batch, section.context))
    return {row["id"]: [sum(next(found).per_token for _ in others[row["id"]]) / _OTHER_QUESTIONS
                        for _ in row["choices"]] for row in rows}


def _right_answers(loaded: LoadedModel, rows: list[Row], section: EvaluationSection,
                   chat: bool) -> dict[str, Likelihood]:
    pairs = [(row["prompt"], row["choices"][row["answer"]]) for row in rows]
    found = score_answers(loaded, pairs, chat, section.batch, section.context)
    return {row["id"]: score for row, score in zip(rows, found, strict=True)}


def _pairs(loaded: LoadedModel, rows: list[Row], section: EvaluationSection,
           chat: bool) -> dict[str, tuple[Likelihood, Likelihood]]:
    asked = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    found = iter(score_answers(loaded, asked, chat, section.batch, section.context))
    return {row["id"]: (next(found), next(found)) for row in rows}


def stop_prompts(sets: Sets) -> list[str]:
    """Prompts whose answers count for the clean-stop rate: samples, safety prompts and some held-out questions."""
    rows = [*sets.samples, *sets.harmful, *sets.benign, *sets.asked(general=True)[:_QUESTIONS_ANSWERED]]
    return list(dict.fromkeys(row["prompt"] for row in rows))


def _prompts(sets: Sets, parts: Parts) -> list[str]:
    return stop_prompts(sets) if parts.safety else [row["prompt"] for row in sets.samples]


def _replies(loaded: LoadedModel, prompts: Iterable[str], section: EvaluationSection) -> dict[str, Completion]:
    asked = list(dict.fromkeys(prompts))
    chat = loaded.asset != "base_model"
    tokens = [loaded.prompt(prompt, chat)[-section.context:] for prompt in asked]
    return dict(zip(asked, generate(loaded, tokens, section.max_new_tokens, section.batch), strict=True))


def _continuations(loaded: LoadedModel, rows: list[Row], section: EvaluationSection,
                   seed: int) -> list[tuple[str, Completion]]:
    """Continuations of 32 tokens of held-out text: the beginnings of all documents, then places further in."""
    starts: list[tuple[int, int, list[int]]] = []
    for number, row in enumerate(rows):
        tokens = loaded.encode(row["text"])
        starts += [(at, number, [loaded.start, *tokens[at:at + _PREFIX]])
                   for at in range(0, len(tokens) - _PREFIX, _STRIDE)]
    prefixes = [tokens for _, _, tokens in sorted(starts)[:_CONTINUATIONS]]
    found = generate(loaded, prefixes, section.max_new_tokens, section.batch, Sampling(seed))
    return [(loaded.decode(prefix), completion) for prefix, completion in zip(prefixes, found, strict=True)]
