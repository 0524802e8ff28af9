"""base_model: a causal language model from random weights, trained on the packed shards."""

from __future__ import annotations

import numpy as np

from training.data.tokens.shards import ShardDocuments, TokenShards
from training.engine import export, export_probe, runtime
from training.engine.architecture import untrained_model
from training.engine.batches import PackedBatches, read_documents, share_steps
from training.engine.session import Session, convert, examine, fit, open_session
from training.engine.trainer import pretraining_trainer
from training.job.context import StageContext
from training.specs.base_model import BaseModelSection as Section
from training.specs.job import StageResult
from training.specs.micro_batches import micro_batch_tokens

_PROMPTS = (
    ("def read_text(path):\n", False),
    ("import os\n\n", False),
    ('class Queue:\n    """', False),
    ("The ", False),
)


def run(context: StageContext[Section]) -> StageResult | None:
    """Build the model, train it along the curriculum, save it."""
    session = open_session(context, str(context.section.architecture["model_type"]))
    model = untrained_model(session, context.section.architecture)
    session = examine(session, model)
    batches = _batches(context, session)
    converted = convert(session, model)
    trainer = pretraining_trainer(model, session.arguments(batches))
    result = fit(session, trainer, batches, converted)
    taken = export_probe.take(session, trainer)
    weights = export.gather_weights(trainer)

    def write() -> None:
        saved = export.save_weights(context.out, model.config, weights, session, taken)
        phases = [(part.first, f"{part.rows.context} tokens") for part in batches.segments]
        export.report(session, result, _PROMPTS, saved, phases)

    export.on_first_rank(session, write)
    runtime.stop()
    return StageResult(metrics=result.metrics, headline="train_loss", facts=session.facts())


def _batches(context: StageContext[Section], session: Session) -> PackedBatches:
    section = context.section
    context.events.phase("pack")
    shards = TokenShards(context.input("packed_shards").folder)
    contexts = [phase.context for phase in section.curriculum]
    micro = micro_batch_tokens(section.batch_tokens, context.execution.micro_batch_tokens, context.world_size, contexts)
    documents = [np.flatnonzero(shards.source == number) for number in range(len(shards.sources))]
    weights = [shards.meta.weights[name] for name in shards.sources]
    spans = share_steps(section.steps, [phase.share for phase in section.curriculum])
    phases = [(first, end, phase.context) for phase, (first, end) in zip(section.curriculum, spans, strict=True)]
    tokens = ShardDocuments(shards, session.end)
    segments = read_documents(documents, tokens, weights, phases, section.batch_tokens, context.seed, session.alone)
    batches = PackedBatches(
        segments, tokens, section.batch_tokens, micro, context.world_size, session.pad, session.alone
    )
    context.events.log(f"{batches.efficiency:.2%} of the places in the rows hold a token")
    return batches
