"""TRL's trainers for the stages after pretraining, and reading their data; base_model does without this import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedModel
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from training.data.conversations.encoded_rows import EncodedRows, encode_rows
from training.data.tokens.shards import ArrayTokens
from training.engine.batches import PackedBatches, read_documents
from training.engine.pairs import CHOSEN_SHARE
from training.engine.session import Session
from training.engine.trainer import StepOrdered
from training.errors import SourceError
from training.model_folder import plain_model
from training.specs.micro_batches import micro_batch_tokens
from training.specs.post_training import LoraModelSection, SftModelSection


class ConversationTrainer(StepOrdered, SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's SFT trainer over our batches."""


class PreferenceTrainer(StepOrdered, DPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's DPO trainer over our batches, which already hold the reference model's log-probabilities.

    Attributes:
        sft_weight: Weight of the chosen answers' negative log-likelihood.
    """

    sft_weight = 0.0

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # TRL would tokenize the placeholder

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # the batches hold them already

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, with the chosen answers' part weighted by the micro-batch's share of the chosen tokens.

        TRL takes the mean over a micro-batch's chosen tokens. Weighted so, it becomes the mean over the whole batch.
        """
        share = inputs.pop(CHOSEN_SHARE, None)
        if self.sft_weight:
            self.loss_weights = [1.0, self.sft_weight * (1.0 if share is None else float(share))]
        return super().compute_loss(model, inputs, *args, **kwargs)


def conversation_trainer(
    model: PreTrainedModel, session: Session, settings: dict[str, Any], adapter: LoraConfig | None = None
) -> ConversationTrainer:
    """An SFT trainer, with a LoRA adapter where one is given.

    Args:
        model: In fp32, with its FP8 layers where there are any.
        session: The job.
        settings: As `Session.arguments` gives them.
        adapter: PEFT's configuration.
    """
    # TRL insists on a dataset of its own kind; the batches come from the mixin's loader.
    placeholder = Dataset.from_dict({"input_ids": [[session.pad]], "labels": [[session.pad]]})
    arguments = SFTConfig(
        **settings,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # the batches are cut to length and packed already
        packing=False,
        completion_only_loss=False,
        gradient_checkpointing=False,
    )
    return ConversationTrainer(
        model=model, args=arguments, train_dataset=placeholder, processing_class=session.tokenizer, peft_config=adapter
    )


def preference_trainer(
    model: PreTrainedModel, session: Session, settings: dict[str, Any], beta: float, sft_weight: float
) -> PreferenceTrainer:
    """A DPO trainer without a second model in memory.

    Args:
        model: In fp32, with its FP8 layers where there are any.
        session: The job.
        settings: As `Session.arguments` gives them.
        beta: How strongly the model is held to the reference.
        sft_weight: Weight of the chosen answers' mean negative log-likelihood; at 0 it is left out.
    """
    losses: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft_weight]} if sft_weight else {}
    placeholder = Dataset.from_dict(
        {"prompt_ids": [[session.pad]], "chosen_ids": [[session.pad]], "rejected_ids": [[session.pad]]}
    )

    arguments = DPOConfig(
        **settings, beta=beta, precompute_ref_log_probs=True, max_length=None, gradient_checkpointing=False, **losses
    )
    trainer = PreferenceTrainer(
        model=model, args=arguments, train_dataset=placeholder, processing_class=session.tokenizer
    )
    trainer.sft_weight = sft_weight
    return trainer


def packed_batches(
    session: Session,
    sequences: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    steps: int,
    context: int,
    batch_tokens: int,
) -> PackedBatches:
    """Batches of token sequences that fit into one row each.

    Args:
        session: The job.
        sequences: Token ids, int64 [length] each. The first token has nothing before it, so it is never learned.
        masks: Which tokens are learned, bool [length] each.
        steps: Optimizer steps.
        context: Tokens per row.
        batch_tokens: Tokens per step.
    """
    world_size, wish = session.runtime.world_size, session.context.execution.micro_batch_tokens
    micro = micro_batch_tokens(batch_tokens, wish, world_size, [context])
    tokens = ArrayTokens(list(sequences), list(masks))

    segments = read_documents(
        [np.arange(len(sequences))],
        tokens,
        [1.0],
        [(0, steps, context)],
        batch_tokens,
        session.context.seed,
        session.alone,
    )
    return PackedBatches(segments, tokens, batch_tokens, micro, world_size, session.pad, session.alone)


def read_conversations(
    session: Session, path: Path, section: SftModelSection | LoraModelSection, parent: str
) -> EncodedRows:
    """The conversations of a parquet file in the order of their ids; see `encode_rows`.

    What the chat format and the context changed goes to report/conversations.json for people.

    Args:
        session: The job.
        path: With rows of `CONVERSATION_SCHEMA` or `MIXED_CONVERSATION_SCHEMA`.
        section: The stage's, for its context and its rule for what is longer.
        parent: The input whose model is trained.
    """
    size = embedding_size(session, parent)
    rows, log = read_rows(path), session.context.events.log
    read = encode_rows(session.chat_format, rows, path.name, section.context, size, log, section.too_long)
    if session.runtime.rank == 0:
        learned = sum(int(mask.sum()) for mask in read.masks)
        counts = {"conversations": len(set(read.numbers)), "learned tokens": learned, **read.counts}
        (session.context.report / "conversations.json").write_text(
            json.dumps(counts, indent=1) + "\n", encoding="utf-8"
        )
    return read


def embedding_size(session: Session, parent: str) -> int:
    """Number of token ids that the model of an input has rows for."""
    folder = plain_model(session.context.input(parent).folder / "model")
    return int(AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file in the order of their ids.

    Raises:
        SourceError: There are none.
    """
    rows = pq.read_table(path).to_pylist()
    if not rows:
        raise SourceError(f"{path} has no rows to train on; materialize the asset it belongs to again")
    return sorted(rows, key=lambda row: str(row["id"]))
