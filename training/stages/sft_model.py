"""sft_model: the base model, fine-tuned on conversations, of which only the assistant's tokens count, and on replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.data.conversations.encoded_rows import LeftOut, pieces_of
from training.data.tokens.shards import TokenShards
from training.engine.batches import PackedBatches
from training.engine.post_training import conversation_trainer, packed_batches, read_conversations
from training.engine.session import Session
from training.engine.trainer import StepOrdered
from training.engine.training_stage import TrainingStage, train
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.post_training import SftModelSection as Section

if TYPE_CHECKING:  # training.engine must be loaded before torch, and so before transformers
    from transformers import PreTrainedModel


def run(context: StageContext[Section]) -> StageResult | None:
    """Encode and pack the conversations, train, save."""
    return train(SftModelStage(context))


class SftModelStage(TrainingStage[Section, PackedBatches]):
    """Next-token prediction on the assistant's turns, and on whole documents of the base model's data."""

    prompts = (
        ("What does `textwrap.dedent` do?", True),
        ("What does `os.path.join` do?", True),
        ("What does `json.dumps` do?", True),
    )
    loss_unit = "nats per assistant's token"

    def read_batches(self, session: Session) -> tuple[PackedBatches, LeftOut]:
        """Rows of conversations and of replayed documents."""
        context, section = self.context, self.section
        context.events.phase("encode conversations")
        assert self.parent is not None
        path = context.input("instruction_data").folder / "train.parquet"
        read = read_conversations(session, path, section, self.parent)
        sequences, masks = read.sequences, read.masks

        # `replay` is a share of the learned tokens, and of a conversation only the answers are learned.
        answer_tokens = sum(int(mask.sum()) for mask in masks)
        wanted = round(answer_tokens * section.replay / (1 - section.replay))
        replayed = self._replay(session.before_document, wanted) if section.replay else []
        replayed_tokens = sum(len(ids) - 1 for ids in replayed)
        sequences += replayed
        masks += [np.ones(len(ids), np.bool_) for ids in replayed]
        context.events.log(f"{answer_tokens:,} tokens of answers and {replayed_tokens:,} of replayed text are learned")

        batches = packed_batches(session, sequences, masks, section.steps, section.context, section.batch_tokens)
        return batches, read.left_out

    def build_trainer(self, session: Session, model: PreTrainedModel, batches: PackedBatches) -> StepOrdered:
        """TRL's trainer for supervised fine-tuning."""
        return conversation_trainer(model, session, session.arguments(batches))

    def _replay(self, before: int, tokens: int) -> list[np.ndarray]:
        """The documents that come first by digest, in pieces that fit into a row, until `tokens` are learned.

        Args:
            before: Id of the token before a document.
            tokens: Tokens to learn.

        Returns:
            Token ids, int64 [2 to `context`] each.
        """
        shards = TokenShards(self.context.input("packed_shards").folder)
        pieces: list[np.ndarray] = []
        for index in range(len(shards.lengths)):
            if tokens <= 0:
                break
            document = shards.document(index).astype(np.int64)[:tokens]
            tokens -= len(document)
            pieces += pieces_of(document, before, self.section.context)
        return pieces
