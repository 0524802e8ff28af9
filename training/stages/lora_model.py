"""lora_model: a LoRA adapter (Hu et al., 2021) on the DPO model for one domain, and the two merged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

from training.data.conversations.chat_template import encode_conversations
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.engine import adapter, export, export_probe, runtime
from training.engine.batches import Dropped, PackedBatches, conversations_that_fit
from training.engine.post_training import conversation_trainer, packed_batches, pieces_of, read_conversations
from training.engine.session import Session, convert, examine, fit, load_parent, model_type, open_session
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.post_training import LoraModelSection as Section
from training.specs.post_training_data import AdapterDataSection

_PROMPTS = (("What does `textwrap.dedent` do?", True), ("What does `os.path.join` do?", True), ("import ", False))


def run(context: StageContext[Section]) -> StageResult | None:
    """Encode documents and conversations of the domain, train the adapter, save it and the merged model."""
    session = open_session(context, model_type(context.input("dpo_model").folder / "model"))
    model = load_parent(session, "dpo_model")
    session = examine(session, model)
    batches, dropped = _batches(context, session)
    converted = convert(session, model)
    trainer = conversation_trainer(
        model, session, session.arguments(batches), adapter.lora_config(context.section, model)
    )
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    result = fit(session, trainer, batches, converted)
    result = replace(
        result,
        metrics=result.metrics
        | {
            "dropped_conversations": float(dropped.count),
            "dropped_conversations_share": dropped.share,
            "trainable_parameters": float(trainable),
        },
    )
    taken = export_probe.take(session, trainer).model_copy(update={"dropped_share": dropped.share})
    weights = export.gather_weights(trainer)

    def write() -> None:
        parent, folder = context.input("dpo_model").manifest, context.out / "adapter"
        adapter.save(folder, trainer.model, weights, parent)
        merged = adapter.merge(load_parent(session, "dpo_model"), parent, folder)
        export.save_tokenizer(session, folder, model.config)
        saved = export.save_weights(context.out, merged.config, merged.state_dict(), session, taken, "dpo_model")
        export.report(session, result, _PROMPTS, saved)

    export.on_first_rank(session, write)
    runtime.stop()
    domain = AdapterDataSection.model_validate(context.input("adapter_data").manifest.section).domain
    return StageResult(metrics=result.metrics, headline="train_loss", facts=session.facts() | {"domain": domain})


def _batches(context: StageContext[Section], session: Session) -> tuple[PackedBatches, Dropped]:
    """Rows of documents, which are learned whole, and of conversations, of which the assistant's part is."""
    section, folder = context.section, context.input("adapter_data").folder
    context.events.phase("encode documents")
    conversations = read_conversations(folder / "train.parquet")
    sequences, masks, dropped = conversations_that_fit(
        encode_conversations(session.tokenizer, conversations), section.context, context.events.log
    )
    for ids in _documents(session):
        pieces = pieces_of(ids, session.end, section.context)
        sequences += pieces
        masks += [np.ones(len(piece), np.bool_) for piece in pieces]
    return packed_batches(session, sequences, masks, section.steps, section.context, section.batch_tokens), dropped


def _documents(session: Session) -> list[np.ndarray]:
    """Token ids of every document with its end of text, in the order of their ids."""
    context = session.context
    table = pq.read_table(context.input("adapter_data").folder / "documents.parquet", columns=["id", "text"])
    texts = [row["text"] for row in sorted(table.to_pylist(), key=lambda row: str(row["id"]))]
    plain = load_plain(context.input("tokenizer").folder / TOKENIZER_FILE)
    return [np.array([*ids, session.tokenizer.eos_token_id], np.int64) for ids in encode_texts(plain, texts)]
