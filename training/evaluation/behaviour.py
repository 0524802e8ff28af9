"""What one model does on the evaluation sets: scores and generated texts, not yet judged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.data.conversations.chat_format import Conversation
from training.evaluation.generation import Completion, Sampling, generate
from training.evaluation.json_lines import read_lines
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Likelihood, TextScore, score_answers, score_texts
from training.evaluation.turns import score_turns
from training.specs.evaluation import EvaluationSection

GENERAL = "general"
_QUESTIONS_ANSWERED = 64
_CONTINUATIONS = 64
_PREFIX = 32  # tokens
_STRIDE = 256  # tokens

Row = dict[str, Any]


@dataclass(frozen=True)
class Sets:
    """The evaluation sets. A file that is absent is an empty set, and nothing is measured on it.

    Attributes:
        text: Held-out documents: `id`, `text`, `source`, `domain`, `bytes`.
        questions: Four-way questions: `id`, `prompt`, `choices`, `answer` (the right choice's number), `domain`.
        harmful: Prompts that should be refused: `id`, `prompt`.
        benign: Harmless prompts that look like harmful ones: `id`, `prompt`.
        preferences: Pairs: `id`, `prompt`, `chosen`, `rejected`.
        samples: Prompts whose answers the report shows: `id`, `prompt`.
        domain: The domain that an adapter is for; empty for every other model.
        conversations: Held-out conversations of the recipe's own: `id`, `messages`, `tools`, `source`.
        pairs: Held-out pairs of the recipe's own: `id`, `prompt`, `chosen`, `rejected` (messages each), `source`.
    """

    text: list[Row]
    questions: list[Row]
    harmful: list[Row]
    benign: list[Row]
    preferences: list[Row]
    samples: list[Row]
    domain: str = ""
    conversations: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)

    def texts(self, domain: str = GENERAL) -> list[Row]:
        """Held-out documents of a domain."""
        return [row for row in self.text if row["domain"] == domain]

    def asked(self, general: bool) -> list[Row]:
        """Four-way questions of the general domain, or of all others."""
        return [row for row in self.questions if (row["domain"] == GENERAL) == general]


def read_sets(folder: Path, domain: str = "") -> Sets:
    """Read the evaluation sets of an artifact's folder.

    Args:
        folder: The artifact's folder.
        domain: The domain that the adapter to be judged is for; empty if the model is no adapter.

    Raises:
        InputRefused: A line of a file is not a JSON object.
    """
    names = ("text", "questions", "harmful", "benign", "preferences", "samples", "conversations", "pairs")
    paths = {name: folder / f"{name}.jsonl" for name in names}
    return Sets(**{name: read_lines(path) if path.is_file() else [] for name, path in paths.items()}, domain=domain)


@dataclass(frozen=True)
class Parts:
    """Which parts of the evaluation a model goes through.

    Attributes:
        general: Score general held-out text.
        domain: Score held-out text of the adapter's domain.
        right_answers: Score the right answers of the general questions.
        preferences: Score both answers of the preference pairs.
        safety: Answer the harmful and the benign prompts, and some questions.
        continuations: Continue held-out text.
        conversations: Score the learned turns of held-out conversations.
    """

    general: bool = False
    domain: bool = False
    right_answers: bool = False
    preferences: bool = False
    safety: bool = False
    continuations: bool = False
    conversations: bool = False


JUDGED_PARTS = {
    "base_model": Parts(general=True, continuations=True, conversations=True),
    "sft_model": Parts(general=True, right_answers=True, safety=True, conversations=True),
    "dpo_model": Parts(general=True, right_answers=True, safety=True, preferences=True, conversations=True),
    "lora_model": Parts(general=True, domain=True, right_answers=True, safety=True, conversations=True),
}
"""Kind of a model to what is measured of it."""

CHAT_BASE_PARTS = Parts(general=True, right_answers=True, safety=True, conversations=True)
"""What is measured of a base model that was imported with a chat template of its own: its answers too."""

PARENT_PARTS = {
    "sft_model": Parts(right_answers=True, conversations=True),
    "dpo_model": Parts(preferences=True, conversations=True),
    "lora_model": Parts(general=True, domain=True, conversations=True),
}
"""Kind of a model to what is measured of its parent beside it."""


@dataclass(frozen=True)
class Behaviour:
    """Scores and texts of one model.

    Attributes:
        vocabulary: Number of tokens.
        parts: Which parts were measured.
        general: Passages of general held-out text: id to score; see `document_of`.
        domain: Passages of the domain's held-out text: id to score.
        right: General questions: id to the likelihood of the right answer.
        pairs: Preference pairs of both kinds: id to the likelihoods of the chosen and the rejected answer.
        conversations: Held-out conversations: id to the likelihood of their learned turns.
        unscored_conversations: Id of every other one to the reason why it was not scored.
        unscored_pairs: The same of pairs.
        replies: Prompt to the model's answer.
        continuations: Places in held-out text: id to the text before the place and how the model continues it.
    """

    vocabulary: int
    parts: Parts
    general: dict[str, TextScore] = field(default_factory=dict)
    domain: dict[str, TextScore] = field(default_factory=dict)
    right: dict[str, Likelihood] = field(default_factory=dict)
    pairs: dict[str, tuple[Likelihood, Likelihood]] = field(default_factory=dict)
    conversations: dict[str, Likelihood] = field(default_factory=dict)
    unscored_conversations: dict[str, str] = field(default_factory=dict)
    unscored_pairs: dict[str, str] = field(default_factory=dict)
    replies: dict[str, Completion] = field(default_factory=dict)
    continuations: dict[str, tuple[str, Completion]] = field(default_factory=dict)


def measure(
    loaded: LoadedModel, sets: Sets, parts: Parts, section: EvaluationSection, seed: int, chat_scoring: bool
) -> Behaviour:
    """Run the named parts; the sample prompts are answered in any case.

    Args:
        loaded: The model.
        sets: What to measure it on.
        parts: What to run.
        section: Context, batch and length limits.
        seed: Of the base model's continuations, the only texts that are drawn and not greedy.
        chat_scoring: Put questions through the chat template when answers are scored. A base model that is the
            reference of its chat model is scored in the chat format too, so that both see the same tokens.

    Returns:
        What the model does; a part that was not run is empty.
    """
    conversations, unscored = _conversations(loaded, sets.conversations if parts.conversations else [], section)
    pairs, unscored_pairs = _own_pairs(loaded, sets.pairs if parts.preferences else [], section)
    return Behaviour(
        vocabulary=loaded.vocabulary,
        parts=parts,
        general=_texts(loaded, sets.texts() if parts.general else [], section),
        domain=_texts(loaded, sets.texts(sets.domain) if parts.domain else [], section),
        right=_right_answers(loaded, sets.asked(general=True) if parts.right_answers else [], section, chat_scoring),
        pairs=_pairs(loaded, sets.preferences if parts.preferences else [], section, chat_scoring) | pairs,
        conversations=conversations,
        unscored_conversations=unscored,
        unscored_pairs=unscored_pairs,
        replies=_replies(loaded, _prompts(sets, parts), section),
        continuations=_continuations(loaded, sets.texts(), section, seed) if parts.continuations else {},
    )


def _texts(loaded: LoadedModel, rows: list[Row], section: EvaluationSection) -> dict[str, TextScore]:
    scores = score_texts(loaded, [row["text"] for row in rows], section.batch, section.context)
    return {
        f"{row['id']}:{start}": score
        for row, by_start in zip(rows, scores, strict=True)
        for start, score in by_start.items()
    }


def document_of(passage: str) -> str:
    """Id of a passage's document. A passage's id is that id, a colon and the number of its first character."""
    return passage.rpartition(":")[0]


def _right_answers(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection, chat: bool
) -> dict[str, Likelihood]:
    pairs = [(row["prompt"], row["choices"][row["answer"]]) for row in rows]
    likelihoods = score_answers(loaded, pairs, chat, section.batch, section.context)
    return {row["id"]: likelihood for row, likelihood in zip(rows, likelihoods, strict=True)}


def _pairs(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection, chat: bool
) -> dict[str, tuple[Likelihood, Likelihood]]:
    pairs = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    likelihoods = iter(score_answers(loaded, pairs, chat, section.batch, section.context))
    return {row["id"]: (next(likelihoods), next(likelihoods)) for row in rows}


def _conversations(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection
) -> tuple[dict[str, Likelihood], dict[str, str]]:
    """Conversations that could be scored, and why the others could not."""
    conversations = [Conversation(row["messages"], row["tools"]) for row in rows]
    scores = score_turns(loaded, conversations, section.batch, section.context)
    scored: dict[str, Likelihood] = {}
    unscored: dict[str, str] = {}
    for row, score in zip(rows, scores, strict=True):
        if isinstance(score, str):
            unscored[row["id"]] = score
        else:
            scored[row["id"]] = score
    return scored, unscored


def _own_pairs(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection
) -> tuple[dict[str, tuple[Likelihood, Likelihood]], dict[str, str]]:
    """Pairs of which both sides could be scored, and why the others could not."""
    sides = [Conversation([*row["prompt"], *row[side]]) for row in rows for side in ("chosen", "rejected")]
    scores = iter(score_turns(loaded, sides, section.batch, section.context))
    scored: dict[str, tuple[Likelihood, Likelihood]] = {}
    unscored: dict[str, str] = {}
    for row in rows:
        chosen, rejected = next(scores), next(scores)
        if isinstance(chosen, Likelihood) and isinstance(rejected, Likelihood):
            scored[row["id"]] = (chosen, rejected)
        else:
            unscored[row["id"]] = next(score for score in (chosen, rejected) if isinstance(score, str))
    return scored, unscored


def stop_prompts(sets: Sets) -> dict[str, str]:
    """Prompts by id: samples, safety prompts, some held-out questions. The metrics look at how their answers end."""
    rows = [*sets.samples, *sets.harmful, *sets.benign, *sets.asked(general=True)[:_QUESTIONS_ANSWERED]]
    ids: dict[str, str] = {}
    for row in rows:
        ids.setdefault(row["prompt"], row["id"])
    return {key: prompt for prompt, key in ids.items()}


def _prompts(sets: Sets, parts: Parts) -> list[str]:
    return list(stop_prompts(sets).values()) if parts.safety else [row["prompt"] for row in sets.samples]


def _replies(loaded: LoadedModel, prompts: Iterable[str], section: EvaluationSection) -> dict[str, Completion]:
    distinct = list(dict.fromkeys(prompts))
    tokens = [loaded.prompt(prompt, loaded.is_chat)[-section.context :] for prompt in distinct]
    return dict(zip(distinct, generate(loaded, tokens, section.max_new_tokens, section.batch), strict=True))


def _continuations(
    loaded: LoadedModel, rows: list[Row], section: EvaluationSection, seed: int
) -> dict[str, tuple[str, Completion]]:
    """How the model continues 32 tokens of held-out text: at the beginnings of all documents, then further in.

    An id names the document, the token and the text, so that models with other tokenizers share no items.
    """
    starts: list[tuple[int, int, list[int]]] = []
    for number, row in enumerate(rows):
        tokens = loaded.encode(row["text"])
        for place in range(0, len(tokens) - _PREFIX, _STRIDE):
            starts.append((place, number, [loaded.start, *tokens[place : place + _PREFIX]]))
    chosen = sorted(starts)[:_CONTINUATIONS]

    prefixes = [prefix for _, _, prefix in chosen]
    completions = generate(loaded, prefixes, section.max_new_tokens, section.batch, Sampling(seed))
    continuations: dict[str, tuple[str, Completion]] = {}
    for (place, number, prefix), completion in zip(chosen, completions, strict=True):
        text = loaded.decode(prefix)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        continuations[f"{rows[number]['id']}@{place}-{digest}"] = (text, completion)
    return continuations
