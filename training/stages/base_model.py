"""base_model: a causal language model trained on the packed shards, or an imported one.

Training begins from random weights, or from those of somebody else's model. Without steps that model is imported as it
is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from training.data.sources.origins import OriginFiles, origin_files, origin_state
from training.data.tokens.plan_files import kept_phases
from training.data.tokens.shards import DocumentsOfSources, ShardDocuments, TokenShards
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
from training.specs.artifacts import Manifest
from training.specs.base import digest_of
from training.specs.base_model import BaseModelSection as Section
from training.specs.base_model import budget_in_words
from training.specs.job import StageResult
from training.specs.micro_batches import micro_batch_tokens
from training.specs.mixture import MIXTURE_FILE, Mixture, SourceRead, sampling_weights
from training.specs.packed_shards import PackedShardsSection

if TYPE_CHECKING:  # training.engine must be loaded before torch, and so before transformers
    from transformers import PreTrainedModel

_PLANS = "packing"  # folder of the attempt
_WORTH_SAYING = 1.5  # times that a source is read more often than another one


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
            model = untrained_model(session, self.section.architecture, rows)
        else:
            self._imported = for_training(self.context, self._files, session.choice.attention)
            model = self._imported.model
        self._settle_the_budget(sum(parameter.numel() for parameter in model.parameters()))
        return model

    def _settle_the_budget(self, parameters: int) -> None:
        """Give the section its steps, where they follow from the number of parameters.

        Raises:
            RecipeError: So many steps do not go with the rest of the section.
        """
        try:
            self.section = self.section.with_steps(parameters)
        except ValueError as error:
            raise RecipeError(f"base_model.tokens_per_parameter: {error}") from error
        self.context.events.log(f"trains for {budget_in_words(self.section, parameters)}")

    def facts(self) -> dict[str, str]:
        """Where the weights began, if they came in: such a model may answer questions, and is measured on them."""
        return {"origin": self._origin} if self._origin else {}

    def save(self, session: Session, trained: Trained[PackedBatches]) -> str:
        """As every stage, with the ends that an imported model had, and what was read of several sources."""
        mixture = self.mixture(trained.trainer)
        if len(mixture.sources) > 1:
            (self.context.out / MIXTURE_FILE).write_text(mixture.model_dump_json() + "\n", encoding="utf-8")
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
        self._held = tokens_held(shards, context.input("packed_shards").manifest)
        try:
            by_name = [sampling_weights(section, phase, self._held) for phase in section.curriculum]
        except ValueError as error:
            raise RecipeError(f"base_model.mixture: {error}") from error
        phase_weights = [[of_phase[name] for name in shards.sources] for of_phase in by_name]
        tokens = ShardDocuments(shards)

        spans = share_steps(section.steps, [phase.share for phase in section.curriculum])
        phases = [(first, end, phase.context) for phase, (first, end) in zip(section.curriculum, spans, strict=True)]
        segments = read_documents(
            DocumentsOfSources(shards),
            tokens,
            phase_weights[0],
            phases,
            section.batch_tokens,
            context.seed,
            session.alone,
            phase_weights,
            partial(kept_phases, context.work / _PLANS, self._plans_made_for(session)),
        )
        tell_mixture(section, planned_mixture(section, self._held, segments), context.events)
        batches = PackedBatches(
            segments,
            tokens,
            section.batch_tokens,
            micro,
            context.world_size,
            session.pad,
            session.alone,
            shards.source,
            len(shards.sources),
        )
        self._source_names = shards.sources
        context.events.log(f"{batches.efficiency:.2%} of the places in the rows hold a token")
        return batches, None

    def _plans_made_for(self, session: Session) -> str:
        """Digest of what decides about the plans; more than enough, because an attempt has one identity."""
        context = self.context
        shards = context.input("packed_shards").manifest.digest
        return digest_of([context.identity, self.section.identity_fields(), shards, context.seed, session.alone])

    def build_trainer(self, session: Session, model: PreTrainedModel, batches: PackedBatches) -> StepOrdered:
        """The Trainer of transformers."""
        trainer = pretraining_trainer(model, session.arguments(batches))
        trainer.source_names = self._source_names
        return trainer

    def mixture(self, trainer: StepOrdered) -> Mixture:
        """What was read of each source, as the trainer counted it."""
        read = dict(zip(trainer.source_names, trainer.source_tokens, strict=True))
        return Mixture(
            sources=tuple(
                SourceRead(name=name, tokens=read.get(name, 0), held=held) for name, held in self._held.items()
            )
        )

    def phases(self, batches: PackedBatches) -> list[tuple[int, str]]:
        """One phase per context length."""
        return [(part.first, f"{part.rows.context} tokens") for part in batches.segments]


def tokens_held(shards: TokenShards, manifest: Manifest) -> dict[str, int]:
    """Tokens of each source of the shards, and 0 of those that their recipe lists and that gave no text to them."""
    held = shards.tokens_of_sources()
    section = PackedShardsSection.model_validate(manifest.section)
    return held | {name: 0 for name in section.weights if name not in held}


def planned_mixture(section: Section, held: Mapping[str, int], segments: Sequence[Segment]) -> Mixture:
    """What the steps will read of each source, to within a row of each phase.

    Args:
        section: The recipe's.
        held: Tokens that the shards hold of each source.
        segments: The plan; its sources are the first ones of `held`.
    """
    read = np.zeros(len(held))
    for segment in segments:
        tokens = segment.rows.tokens((segment.end - segment.first) * section.batch_tokens // segment.rows.context)
        read[: len(tokens)] += tokens
    counts = zip(held.items(), read.tolist(), strict=True)
    return Mixture(
        sources=tuple(SourceRead(name=name, tokens=round(count), held=all_) for (name, all_), count in counts)
    )


def tell_mixture(section: Section, planned: Mixture, events: EventWriter) -> None:
    """Say what the model reads of each source, and how often.

    Raises:
        RecipeError: It is more often than the recipe allows.
    """
    shares = planned.shares()
    told = ", ".join(
        f"{source.name} {shares[source.name]:.1%} ({source.tokens:,} tokens, read {source.epochs:.2f} times)"
        for source in planned.sources
        if source.held
    )
    worst = max(planned.sources, key=lambda source: source.epochs)
    slowest = min((source for source in planned.sources if source.tokens), key=lambda source: source.epochs)
    ratio = ""
    if worst.epochs >= _WORTH_SAYING * slowest.epochs:
        ratio = f"; {worst.name} is read {worst.epochs / slowest.epochs:.1f} times while {slowest.name} is read once"
    events.log(f"reads {told}{ratio}")

    most = section.max_epochs
    if most is not None and worst.epochs > most:
        raise RecipeError(
            f"base_model.max_epochs: the steps read {worst.tokens:,} tokens of {worst.name}, which has "
            f"{worst.held:,}: {worst.epochs:.2f} times, and {most:g} are allowed{ratio}. Lower its weight or the "
            "steps, or add text"
        )
