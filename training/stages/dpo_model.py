"""dpo_model: the SFT model after direct preference optimization (Rafailov et al., 2023)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.tokens.order import RowOrder
from training.engine import export, export_probe, runtime
from training.engine.batches import Dropped
from training.engine.out_of_memory import smaller_when_short
from training.engine.pairs import REFERENCE_FILE, PairBatches, encode_pairs, reference_logprobs, save_reference
from training.engine.post_training import preference_trainer, read_rows
from training.engine.session import Session, convert, fit, load_parent, model_type, open_session
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.micro_batches import micro_batch_pairs
from training.specs.post_training import DpoModelSection as Section

_PROMPTS = (
    ("What does `textwrap.dedent` do?", True),
    ("What does `os.path.join` do?", True),
    ("What does `json.dumps` do?", True),
)


def run(context: StageContext[Section]) -> StageResult | None:
    """Encode the pairs, score them with the SFT model, train, save."""
    session = open_session(context, model_type(context.input("sft_model").folder / "model"))
    batches, dropped = _batches(context, session)
    model = load_parent(session, "sft_model")
    converted = convert(session, model)
    trainer = preference_trainer(
        model, session, session.arguments(batches), context.section.beta, context.section.sft_weight
    )
    with smaller_when_short(batches, model):
        reference = reference_logprobs(session, trainer, batches)
    result = fit(session, trainer, replace(batches, reference=reference), converted)
    result = replace(
        result, metrics=result.metrics | {"dropped_pairs": float(dropped.count), "dropped_pairs_share": dropped.share}
    )
    taken = export_probe.take(session, trainer).model_copy(update={"dropped_share": dropped.share})
    weights = export.gather_weights(trainer)

    def write() -> None:
        saved = export.save_weights(context.out, model.config, weights, session, taken, "sft_model")
        save_reference(context.out / REFERENCE_FILE, batches.pairs, reference)
        export.report(session, result, _PROMPTS, saved, unit="nats per pair")

    export.on_first_rank(session, write)
    runtime.stop()
    return StageResult(metrics=result.metrics, headline="train_loss", facts=session.facts())


def _batches(context: StageContext[Section], session: Session) -> tuple[PairBatches, Dropped]:
    """The batches, with a reference of zeros until it has been computed, and the number of pairs left out."""
    section, world_size = context.section, context.world_size
    context.events.phase("encode pairs")
    rows = read_rows(context.input("preference_data").folder / "train.parquet")
    pairs, dropped = encode_pairs(session.tokenizer, rows, section.context, context.events.log)
    micro = micro_batch_pairs(section.batch_pairs, section.context, context.execution.micro_batch_tokens, world_size)
    order = RowOrder([len(pairs)], [1.0], context.seed)
    return PairBatches(
        tuple(pairs),
        section.steps,
        section.batch_pairs,
        micro,
        section.context,
        world_size,
        order,
        session.pad,
        np.zeros((len(pairs), 2), np.float32),
    ), dropped
