"""base_model: a causal language model trained on the packed shards, or an imported one.

Training begins from random weights, or from those of somebody else's model. Without steps that model is imported as it
is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.data.sources.origins import OriginFiles, origin_files, origin_state
from training.data.tokens.shards import ShardDocuments, TokenShards
from training.engine import export
from training.engine.architecture import untrained_model
from training.engine.batches import PackedBatches, Segment, read_documents, share_steps
from training.engine.imported_model import for_training, publish_import
from training.engine.model_import import ImportedModel, origin_model_type
from training.engine.session import Session
from training.engine.trainer import StepOrdered, pretraining_trainer
from training.engine.training_stage import Trained, TrainingStage, train
from training.errors import RecipeError
from training.job.context import StageContext
from training.job.events import EventWriter
from training.specs.base_model import BaseModelSection as Section
from training.specs.job import StageResult
from training.specs.micro_batches import micro_batch_tokens

if TYPE_CHECKING:  # training.engine must be loaded before torch, and so before transformers
    from transformers import PreTrainedModel


def run(context: StageContext[Section]) -> StageResult | None:
    """Build or import the model, train it along the curriculum if there are steps, save it."""
    if not context.section.is_trained:
        return publish_import(context) if context.rank == 0 else None
    return train(BaseModelStage(context))


class BaseModelStage(TrainingStage[Section, PackedBatches]):
    """Next-token prediction on every document of the shards."""

    prompts = (
        ("def read_text(path):\n", False),
        ("import os\n\n", False),
        ('class Queue:\n    """', False),
        ("The ", False),
    )

    def __init__(self, context: StageContext[Section]) -> None:
        super().__init__(context)
        origin = self.section.origin
        self._files: OriginFiles | None = None if origin is None else origin_files(origin)
        self._origin = "" if origin is None else origin_state(origin)
        self._imported: ImportedModel | None = None

    def model_type(self) -> str:
        """As the recipe's architecture says, or the model that is imported."""
        if self._files is not None:
            return origin_model_type(self._files)
        return str(self.section.architecture["model_type"])

    def build_model(self, session: Session) -> PreTrainedModel:
        """The recipe's architecture with seeded random weights, or the imported model in float32."""
        if self._files is None:
            rows = self.section.rows(len(session.tokenizer))
            return untrained_model(session, self.section.architecture, rows)
        self._imported = for_training(self.context, self._files, session.choice.attention)
        return self._imported.model

    def facts(self) -> dict[str, str]:
        """Where the weights began, if they came in: such a model may answer questions, and is measured on them."""
        return {"origin": self._origin} if self._origin else {}

    def save(self, session: Session, trained: Trained[PackedBatches]) -> str:
        """As every stage, with the ends that an imported model had."""
        ends = () if self._imported is None else self._imported.ends
        return export.save_weights(
            self.context.out, trained.model.config, trained.weights, session, trained.probe, kept_ends=ends
        )

    def read_batches(self, session: Session) -> tuple[PackedBatches, None]:
        """Packed rows along the curriculum; documents that are longer than a row are split, so none is left out."""
        context, section = self.context, self.section
        context.events.phase("pack")
        contexts = [phase.context for phase in section.curriculum]
        wish = context.execution.micro_batch_tokens
        micro = micro_batch_tokens(section.batch_tokens, wish, context.world_size, contexts)

        shards = TokenShards(context.input("packed_shards").folder)
        documents = [np.flatnonzero(shards.source == number) for number in range(len(shards.sources))]
        weights = [section.weights.get(name, 1.0) for name in shards.sources]
        phase_weights = [
            [phase.weights.get(name, weight) for name, weight in zip(shards.sources, weights, strict=True)]
            for phase in section.curriculum
        ]
        tokens = ShardDocuments(shards, session.end)

        spans = share_steps(section.steps, [phase.share for phase in section.curriculum])
        phases = [(first, end, phase.context) for phase, (first, end) in zip(section.curriculum, spans, strict=True)]
        segments = read_documents(
            documents, tokens, weights, phases, section.batch_tokens, context.seed, session.alone, phase_weights
        )
        tell_mixture(section, shards, segments, context.events)
        batches = PackedBatches(
            segments, tokens, section.batch_tokens, micro, context.world_size, session.pad, session.alone
        )
        context.events.log(f"{batches.efficiency:.2%} of the places in the rows hold a token")
        return batches, None

    def build_trainer(self, session: Session, model: PreTrainedModel, batches: PackedBatches) -> StepOrdered:
        """The Trainer of transformers."""
        return pretraining_trainer(model, session.arguments(batches))

    def phases(self, batches: PackedBatches) -> list[tuple[int, str]]:
        """One phase per context length."""
        return [(part.first, f"{part.rows.context} tokens") for part in batches.segments]


def tell_mixture(section: Section, shards: TokenShards, segments: tuple[Segment, ...], events: EventWriter) -> None:
    """Say what the model reads of each source, and how often.

    Raises:
        RecipeError: It is more often than the recipe allows.
    """
    batch_tokens, most = section.batch_tokens, section.max_epochs
    read = np.zeros(len(shards.sources))
    for segment in segments:
        read += segment.rows.tokens((segment.end - segment.first) * batch_tokens // segment.rows.context)
    held = np.bincount(shards.source, shards.lengths, minlength=len(shards.sources))
    epochs = read / np.maximum(held, 1)
    shares = ", ".join(
        f"{name} {share:.1%} ({tokens:,.0f} tokens, read {times:.2f} times)"
        for name, share, tokens, times in zip(shards.sources, read / max(read.sum(), 1), read, epochs, strict=True)
    )
    events.log(f"reads {shares}")

    worst = int(np.argmax(epochs))
    if most is not None and epochs[worst] > most:
        raise RecipeError(
            f"base_model.max_epochs: the steps read {read[worst]:,.0f} tokens of {shards.sources[worst]}, which "
            f"has {held[worst]:,.0f}: {epochs[worst]:.2f} times, and {most:g} are allowed. Lower its weight or "
            "the steps, or add text"
        )
