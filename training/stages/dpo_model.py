"""dpo_model: the SFT model after direct preference optimization (Rafailov et al., 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from training.data.conversations.encoded_pairs import encode_pairs
from training.data.conversations.encoded_rows import LeftOut
from training.data.tokens.order import RowOrder
from training.engine.out_of_memory import smaller_when_short
from training.engine.pairs import REFERENCE_FILE, PairBatches, reference_logprobs, save_reference
from training.engine.post_training import embedding_size, preference_trainer, read_rows
from training.engine.session import Session
from training.engine.trainer import StepOrdered
from training.engine.training_stage import Trained, TrainingStage, train
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.micro_batches import micro_batch_pairs
from training.specs.post_training import DpoModelSection as Section

if TYPE_CHECKING:  # training.engine must be loaded before torch, and so before transformers
    from transformers import PreTrainedModel


def run(context: StageContext[Section]) -> StageResult | None:
    """Encode the pairs, score them with the SFT model, train, save."""
    return train(DpoModelStage(context))


class DpoModelStage(TrainingStage[Section, PairBatches]):
    """Preference of the chosen over the rejected answer, measured against the SFT model."""

    packs_rows = False  # every answer has a row of its own
    prompts = (
        ("What does `textwrap.dedent` do?", True),
        ("What does `os.path.join` do?", True),
        ("What does `json.dumps` do?", True),
    )
    loss_unit = "nats per pair"

    def read_batches(self, session: Session) -> tuple[PairBatches, LeftOut]:
        """Batches of pairs; their reference is zeros until `complete_batches`."""
        context, section = self.context, self.section
        context.events.phase("encode pairs")
        rows = read_rows(context.input("preference_data").folder / "train.parquet")
        assert self.parent is not None
        size = embedding_size(session, self.parent)
        pairs, left_out = encode_pairs(
            session.chat_format, rows, section.context, context.events.log, size, section.too_long
        )

        wish = context.execution.micro_batch_tokens
        batches = PairBatches(
            pairs=tuple(pairs),
            steps=section.steps,
            batch_pairs=section.batch_pairs,
            micro_pairs=micro_batch_pairs(section.batch_pairs, section.context, wish, context.world_size),
            context=section.context,
            world_size=context.world_size,
            order=RowOrder([len(pairs)], [1.0], context.seed),
            pad=session.pad,
            reference=np.zeros((len(pairs), 2), np.float32),
        )
        return batches, left_out

    def build_trainer(self, session: Session, model: PreTrainedModel, batches: PairBatches) -> StepOrdered:
        """TRL's trainer for DPO."""
        settings = session.arguments(batches)
        return preference_trainer(model, session, settings, self.section.beta, self.section.sft_weight)

    def complete_batches(self, session: Session, trainer: StepOrdered, batches: PairBatches) -> PairBatches:
        """The batches with the reference model's log-probabilities: before training, the model is the reference."""
        with smaller_when_short(batches, trainer.model):
            return replace(batches, reference=reference_logprobs(session, trainer, batches))

    def save(self, session: Session, trained: Trained[PairBatches]) -> str:
        """The model, and the reference that it was trained against."""
        saved = super().save(session, trained)
        batches = trained.batches
        save_reference(self.context.out / REFERENCE_FILE, batches.pairs, batches.reference)
        return saved
