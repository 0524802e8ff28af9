"""sft_model: the base model, fine-tuned on conversations, of which only the assistant's tokens count, and on replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.conversations.chat_template import encode_conversations
from training.data.tokens.shards import TokenShards
from training.engine import export, export_probe, runtime
from training.engine.batches import Dropped, PackedBatches, conversations_that_fit
from training.engine.post_training import conversation_trainer, packed_batches, pieces_of, read_conversations
from training.engine.session import Session, convert, examine, fit, load_parent, model_type, open_session
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.post_training import SftModelSection as Section

_PROMPTS = (
    ("What does `textwrap.dedent` do?", True),
    ("What does `os.path.join` do?", True),
    ("What does `json.dumps` do?", True),
)


def run(context: StageContext[Section]) -> StageResult | None:
    """Encode and pack the conversations, train, save."""
    session = open_session(context, model_type(context.input("base_model").folder / "model"))
    model = load_parent(session, "base_model")
    session = examine(session, model)
    batches, dropped = _batches(context, session)
    converted = convert(session, model)
    trainer = conversation_trainer(model, session, session.arguments(batches))
    result = fit(session, trainer, batches, converted)
    result = replace(
        result,
        metrics=result.metrics
        | {"dropped_conversations": float(dropped.count), "dropped_conversations_share": dropped.share},
    )
    taken = export_probe.take(session, trainer).model_copy(update={"dropped_share": dropped.share})
    weights = export.gather_weights(trainer)

    def write() -> None:
        saved = export.save_weights(context.out, model.config, weights, session, taken, "base_model")
        export.report(session, result, _PROMPTS, saved, unit="nats per assistant's token")

    export.on_first_rank(session, write)
    runtime.stop()
    return StageResult(metrics=result.metrics, headline="train_loss", facts=session.facts())


def _batches(context: StageContext[Section], session: Session) -> tuple[PackedBatches, Dropped]:
    section = context.section
    context.events.phase("encode conversations")
    conversations = read_conversations(context.input("instruction_data").folder / "train.parquet")
    encoded = encode_conversations(session.tokenizer, conversations)
    sequences, masks, dropped = conversations_that_fit(encoded, section.context, context.events.log)
    told = sum(int(mask.sum()) for mask in masks)
    replayed = _replay(context, session.end, round(told * section.replay / (1 - section.replay)))
    read = sum(len(ids) - 1 for ids in replayed)
    sequences += replayed
    masks += [np.ones(len(ids), np.bool_) for ids in replayed]
    context.events.log(f"{told:,} tokens of answers and {read:,} of replayed text are learned")
    return packed_batches(session, sequences, masks, section.steps, section.context, section.batch_tokens), dropped


def _replay(context: StageContext[Section], end: int, tokens: int) -> list[np.ndarray]:
    """The documents that come first by digest, in pieces, until there are so many tokens to learn."""
    shards = TokenShards(context.input("packed_shards").folder)
    pieces: list[np.ndarray] = []
    for index in range(len(shards.lengths)):
        if tokens <= 0:
            break
        document = shards.document(index).astype(np.int64)[:tokens]
        tokens -= len(document)
        pieces += pieces_of(document, end, context.section.context)
    return pieces
