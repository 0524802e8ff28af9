"""Recipe section of `evaluation_sets`: what every model is measured on."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from training.specs.base import Spec
from training.specs.tasks import Task

_CONVERSATIONS = 200


class EvaluationSetsSection(Spec):
    """Everything that decides the content of `evaluation_sets`."""

    text_kilobytes: int = Field(256, gt=0, description="Held-out text per domain.")
    questions: int = Field(200, gt=0, description="Four-way choice questions from held-out functions or passages.")
    domain_questions: int = Field(60, ge=0, description="The same for every domain that is not `general`.")
    preferences: int = Field(200, gt=0, description="Held-out preference pairs.")
    conversations: int = Field(_CONVERSATIONS, gt=0, description="Held-out conversations.")
    harmful: str = Field(
        "safety/harmful_eval.jsonl", description="Prompts that must be refused; a path relative to the recipe's folder."
    )
    benign: str = Field("safety/benign_eval.jsonl", description="Look-alikes that must be answered.")
    samples: tuple[str, ...] = Field(
        ("What does `textwrap.dedent` do?",),
        min_length=1,
        description="Questions whose answers are shown side by side.",
    )
    ngram: int = Field(
        13, gt=0, description="Words per n-gram of the overlap test; characters in scripts without spaces."
    )
    overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="A training document that holds this share of an item's n-grams is removed from training.",
    )
    tasks: tuple[Task, ...] = Field((), description="Tasks of lm-evaluation-harness that every model is given.")

    def identity_fields(self) -> dict[str, Any]:
        """All fields, without `conversations` where it is the default: versions from before it was a field stay."""
        fields = super().identity_fields()
        if self.conversations == _CONVERSATIONS:
            del fields["conversations"]
        return fields

    def task_metrics(self) -> dict[str, str]:
        """Metric to what it means, of all tasks."""
        return {metric: meaning for task in self.tasks for metric, meaning in task.meanings().items()}
