"""lora_model: a LoRA adapter (Hu et al., 2021) on the nearest model before it, and the two merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from training.data.conversations.encoded_rows import LeftOut, pieces_of
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.engine import adapter, export
from training.engine.batches import PackedBatches
from training.engine.post_training import conversation_trainer, packed_batches, read_conversations
from training.engine.session import Session, load_parent
from training.engine.trainer import StepOrdered
from training.engine.training_stage import Trained, TrainingStage, train
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.post_training import LoraModelSection as Section
from training.specs.post_training_data import AdapterDataSection

if TYPE_CHECKING:  # training.engine must be loaded before torch, and so before transformers
    from transformers import PreTrainedModel


def run(context: StageContext[Section]) -> StageResult | None:
    """Encode documents and conversations of the domain, train the adapter, save it and the merged model."""
    return train(LoraModelStage(context))


class LoraModelStage(TrainingStage[Section, PackedBatches]):
    """Next-token prediction on the domain's documents and its conversations, by an adapter on frozen weights."""

    prompts = (("What does `textwrap.dedent` do?", True), ("What does `os.path.join` do?", True), ("import ", False))

    def read_batches(self, session: Session) -> tuple[PackedBatches, LeftOut]:
        """Rows of documents, of which every token is learned, and of conversations, of which the answers are."""
        context, section = self.context, self.section
        context.events.phase("encode documents")
        assert self.parent is not None
        path = context.input("adapter_data").folder / "train.parquet"
        read = read_conversations(session, path, section, self.parent)
        sequences, masks = read.sequences, read.masks

        for ids in self._documents(session.end):
            pieces = pieces_of(ids, session.before_document, section.context)
            sequences += pieces
            masks += [np.ones(len(piece), np.bool_) for piece in pieces]
        batches = packed_batches(session, sequences, masks, section.steps, section.context, section.batch_tokens)
        return batches, read.left_out

    def build_trainer(self, session: Session, model: PreTrainedModel, batches: PackedBatches) -> StepOrdered:
        """TRL's trainer for supervised fine-tuning, with PEFT's adapter."""
        settings = session.arguments(batches)
        return conversation_trainer(model, session, settings, adapter.lora_config(self.section, model))

    def metrics(self, trainer: StepOrdered) -> dict[str, float]:
        """The size of the adapter."""
        trainable = (parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
        return {"trainable_parameters": float(sum(parameter.numel() for parameter in trainable))}

    def save(self, session: Session, trained: Trained[PackedBatches]) -> str:
        """The adapter by itself, and the parent with the adapter merged into its weights."""
        assert self.parent is not None
        parent, folder = self.context.input(self.parent).manifest, self.context.out / "adapter"
        adapter.save(folder, trained.trainer.model, trained.weights, parent)
        export.save_tokenizer(session, folder, trained.model.config)

        # Merged from the saved files, so that the merged model is what others get who load the adapter.
        merged = adapter.merge(load_parent(session, self.parent), parent, folder)
        return export.save_weights(
            self.context.out, merged.config, merged.state_dict(), session, trained.probe, self.parent
        )

    def facts(self) -> dict[str, str]:
        """The adapter's domain, on which evaluation measures its gain."""
        section = AdapterDataSection.model_validate(self.context.input("adapter_data").manifest.section)
        return {"domain": section.domain}

    def _documents(self, end: int) -> list[np.ndarray]:
        """Token ids of every document with its end of text, int64 [length] each, in the order of their ids."""
        table = pq.read_table(self.context.input("adapter_data").folder / "documents.parquet", columns=["id", "text"])
        texts = [row["text"] for row in sorted(table.to_pylist(), key=lambda row: str(row["id"]))]
        if not texts:  # an adapter for the recipe's own conversations
            return []
        plain = load_plain(self.context.input("tokenizer").folder / TOKENIZER_FILE)
        return [np.array([*ids, end], np.int64) for ids in encode_texts(plain, texts)]
