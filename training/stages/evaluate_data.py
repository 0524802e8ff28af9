"""`evaluate_data`: every metric of a data artifact, measured again on its finished files."""

from __future__ import annotations

from collections.abc import Callable

from training.errors import RecipeError, UserError
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact, StageContext
from training.job.parts import Pool
from training.specs.evaluation import EvaluationSection
from training.specs.job import StageResult
from training.specs.kinds import kind_of
from training.specs.metrics import METRICS
from training.specs.packed_shards import PackedShardsSection
from training.specs.preview import PreviewRequest

Section = EvaluationSection
_Context = StageContext[EvaluationSection]
_SHOWN_ROWS = ("packed_shards", "instruction_data", "preference_data", "adapter_data")
_ROWS = 8
_WHOLE = 2**20  # tokens; a conversation is shown whole, because the model that learns from it has the context

# Each function imports what it needs: judging a corpus does not wait for transformers.


def _pool(context: _Context) -> Pool:
    return Pool(context.work, context.execution, context.events)


def _raw_corpus(context: _Context) -> Measurement:
    from training.evaluation.corpora import measure_raw_corpus

    return measure_raw_corpus(context.input("artifact"), _pool(context))


def _conversations(context: _Context) -> Measurement:
    from training.evaluation.gathered import measure_conversations

    return measure_conversations(context.input("artifact"))


def _preferences(context: _Context) -> Measurement:
    from training.evaluation.gathered import measure_preferences

    return measure_preferences(context.input("artifact"))


def _corpus(context: _Context) -> Measurement:
    from training.evaluation.corpora import measure_corpus

    return measure_corpus(context.input("artifact"), _pool(context))


def _evaluation_sets(context: _Context) -> Measurement:
    from training.evaluation.corpora import measure_evaluation_sets

    return measure_evaluation_sets(context.input("artifact"))


def _tokenizer(context: _Context) -> Measurement:
    from training.evaluation.tokenizers import measure_tokenizer

    return measure_tokenizer(context.input("artifact"), context.inputs.get("corpus"), _pool(context))


def _packed_shards(context: _Context) -> Measurement:
    from training.evaluation.shards import measure_shards

    shards = PackedShardsSection.model_validate(context.input("artifact").manifest.section)
    return measure_shards(
        context.input("artifact"),
        context.input("corpus"),
        context.input("tokenizer"),
        context.input("evaluation_sets"),
        context.section.packing_contexts or shards.contexts,
        _pool(context),
    )


def _instruction_data(context: _Context) -> Measurement:
    from training.evaluation.conversations import measure_instruction_data

    return measure_instruction_data(*_with_sets_and_tokenizer(context))


def _preference_data(context: _Context) -> Measurement:
    from training.evaluation.conversations import measure_preference_data

    return measure_preference_data(*_with_sets_and_tokenizer(context))


def _adapter_data(context: _Context) -> Measurement:
    from training.evaluation.conversations import measure_adapter_data

    return measure_adapter_data(*_with_sets_and_tokenizer(context))


def _with_sets_and_tokenizer(context: _Context) -> tuple[InputArtifact, InputArtifact, InputArtifact]:
    return context.input("artifact"), context.input("evaluation_sets"), context.input("tokenizer")


MEASURES: dict[str, Callable[[_Context], Measurement]] = {
    "raw_corpus": _raw_corpus,
    "corpus": _corpus,
    "conversations": _conversations,
    "preferences": _preferences,
    "evaluation_sets": _evaluation_sets,
    "tokenizer": _tokenizer,
    "packed_shards": _packed_shards,
    "instruction_data": _instruction_data,
    "preference_data": _preference_data,
    "adapter_data": _adapter_data,
}


def _show_rows(context: _Context, asset: str) -> None:
    """Write the first rows as a model will see them, for the asset's page."""
    from training.evaluation.preview import preview
    from training.evaluation.preview_page import write_preview

    data = context.input("artifact")
    is_packed = kind_of(asset) == "packed_shards"
    longest = max(PackedShardsSection.model_validate(data.manifest.section).contexts) if is_packed else _WHOLE
    request = PreviewRequest(
        asset=asset, data=data.folder, tokenizer=context.input("tokenizer").folder, context=longest, count=_ROWS
    )
    try:
        write_preview(context.out / "report", f"Rows of {asset} as a model sees them", preview(request))
    except UserError as error:  # the metrics say what is wrong with the rows
        context.events.log(f"no preview: {error}")


def run(context: _Context) -> StageResult:
    """Measure the artifact and write the report."""
    asset = context.input("artifact").manifest.asset
    kind = kind_of(asset)
    if kind not in MEASURES:
        raise RecipeError(f"evaluate_data does not judge {asset}; it judges {', '.join(MEASURES)}")
    context.events.phase(f"measure {asset}")
    measurement = MEASURES[kind](context)
    measurement.write(context.out, asset, METRICS[kind])
    if kind in _SHOWN_ROWS:
        _show_rows(context, asset)
    return StageResult(metrics=measurement.report.metrics)
