"""TRL's trainers for the stages after pretraining, and reading their data; base_model does without this import."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedModel
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from training.data.conversations.chat_format import Conversation, Encoded, check, total_notes
from training.data.conversations.fitting import fit
from training.data.conversations.lessons import conversation_of, is_plain_text
from training.data.conversations.template_probe import features_of, probe_template
from training.data.tokens.shards import ArrayTokens
from training.engine.batches import Dropped, PackedBatches, conversations_that_fit, read_documents
from training.engine.pairs import CHOSEN_SHARE, refuse_unknown_ids
from training.engine.session import Session
from training.engine.trainer import StepOrdered
from training.errors import SourceError
from training.model_folder import plain_model
from training.specs.micro_batches import micro_batch_tokens


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


@dataclass(frozen=True)
class ReadConversations:
    """Training conversations as token sequences that fit into a row each.

    Attributes:
        sequences: Token ids, int64 [2 to the context] each.
        masks: Which tokens are learned, bool [length] each.
        dropped: What was left out.
    """

    sequences: list[np.ndarray]
    masks: list[np.ndarray]
    dropped: Dropped


def read_conversations(session: Session, path: Path, context: int, parent: str) -> ReadConversations:
    """The conversations of a parquet file in the order of their ids, each checked to teach what it should.

    One that is generated and too long is left out. One of the recipe's own that is too long loses whole turns from its
    front, and is left out where its last question and answer are too long. A plain text has no template around it and
    goes on in further rows.

    Args:
        session: The job.
        path: With rows of `CONVERSATION_SCHEMA` or `MIXED_CONVERSATION_SCHEMA`.
        context: Tokens per row.
        parent: The input whose model is trained.

    Raises:
        TemplateRefused: The chat format loses what conversations hold.
        RowRefused: One cannot be encoded, or teaches something else than its chosen turns.
        InputRefused: One holds a token that the model does not have.
        RecipeError: None fits.
    """
    rows = read_rows(path)
    conversations = [conversation_of(row, path.name) for row in rows]
    texts = [number for number, row in enumerate(rows) if is_plain_text(row)]
    generated = [number for number, row in enumerate(rows) if not row.get("format")]
    own = sorted(set(range(len(rows))) - {*texts, *generated})

    if len(texts) < len(rows):
        probe_template(session.chat_format, features_of(conversations[number] for number in sorted({*generated, *own})))
    encoded, counts = _encode_own(session, conversations, own, context)
    encoded |= _encode_generated(session, conversations, generated)
    encoded |= {number: _encode_text(session, conversations[number]) for number in texts}
    _log_notes(session, list(encoded.values()), counts)
    size = embedding_size(session, parent)
    for number, row in encoded.items():
        refuse_unknown_ids(row.ids, size, conversations[number].named)

    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    for number in sorted(encoded):
        row = encoded[number]
        if is_plain_text(rows[number]):
            parts = pieces_of(row.ids[row.learned], session.before_document, context)
            pieces += [(part, np.ones(len(part), np.bool_)) for part in parts]
        else:
            pieces.append((row.ids, row.learned))
    sequences, masks, dropped = conversations_that_fit(pieces, context, session.context.events.log)
    return ReadConversations(
        sequences, masks, Dropped("conversations", dropped.count + len(rows) - len(encoded), len(rows))
    )


def _encode_generated(
    session: Session, conversations: Sequence[Conversation], numbers: Sequence[int]
) -> dict[int, Encoded]:
    chosen = [conversations[number] for number in numbers]
    encoded = session.chat_format.encode(chosen)
    for conversation, row in zip(chosen, encoded, strict=True):
        check(session.chat_format, conversation, row)
    return dict(zip(numbers, encoded, strict=True))


def _encode_own(
    session: Session, conversations: Sequence[Conversation], numbers: Sequence[int], context: int
) -> tuple[dict[int, Encoded], dict[str, int]]:
    """The conversations with these numbers that fit, and what happened to the others."""
    if not numbers:
        return {}, {}
    fitted = fit(session.chat_format, [conversations[number] for number in numbers], context, "turns")
    for conversation, row in zip(fitted.conversations, fitted.encoded, strict=True):
        check(session.chat_format, conversation, row)

    counts = {
        "lost their first turns to fit": fitted.counts["shortened"],
        "longer than the context and left out": fitted.counts["too_long"],
        "left out because no turn that is learned fits": fitted.counts["nothing_learned"],
    }
    return {numbers[place]: row for place, row in zip(fitted.numbers, fitted.encoded, strict=True)}, counts


def _encode_text(session: Session, conversation: Conversation) -> Encoded:
    """A plain text, which is the one message of its row."""
    return session.chat_format.encode_text(str(conversation.messages[0]["content"]), end=True)


def _log_notes(session: Session, encoded: Sequence[Encoded], counts: Mapping[str, int]) -> None:
    """Write what the chat format and the context changed to the log, and for people to report/conversations.json."""
    noted = {name.replace("_", " "): count for name, count in total_notes(encoded).items()} | dict(counts)
    changed = {name: count for name, count in noted.items() if count}
    if changed:
        session.context.events.log("conversations: " + ", ".join(f"{count} {name}" for name, count in changed.items()))
    if session.runtime.rank == 0:
        learned = sum(int(row.learned.sum()) for row in encoded)
        told = {"conversations": len(encoded), "learned tokens": learned} | noted
        (session.context.report / "conversations.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def embedding_size(session: Session, parent: str) -> int:
    """Number of token ids that the model of an input has rows for."""
    folder = plain_model(session.context.input(parent).folder / "model")
    return int(AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size)


def pieces_of(document: np.ndarray, before: int, context: int) -> list[np.ndarray]:
    """A document as sequences that fit into a row; each begins with the last token of the one before.

    That token is given and not learned, so every token of the document is learned once.

    Args:
        document: Token ids, int64 [length].
        before: Id of the token before a document.
        context: Tokens per row.

    Returns:
        int64 [2 to `context`] each; without their first tokens they make up the document.
    """
    whole = np.concatenate([[before], document]).astype(np.int64)
    return [whole[start : start + context] for start in range(0, len(document), context - 1)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file in the order of their ids.

    Raises:
        SourceError: There are none.
    """
    rows = pq.read_table(path).to_pylist()
    if not rows:
        raise SourceError(f"{path} has no rows to train on; materialize the asset it belongs to again")
    return sorted(rows, key=lambda row: str(row["id"]))
