"""`evaluate_data`: every metric of a data artifact, measured again on its finished files."""

from __future__ import annotations

from collections.abc import Callable

from training.errors import RecipeError
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact, StageContext
from training.specs.evaluation import EvaluationSection
from training.specs.job import StageResult
from training.specs.kinds import kind_of
from training.specs.metrics import METRICS

Section = EvaluationSection
_Context = StageContext[EvaluationSection]

# Each function imports what it needs: judging a corpus does not wait for transformers.


def _raw_corpus(context: _Context) -> Measurement:
    from training.evaluation.corpora import measure_raw_corpus

    return measure_raw_corpus(context.input("artifact"))


def _conversations(context: _Context) -> Measurement:
    from training.evaluation.gathered import measure_conversations

    return measure_conversations(context.input("artifact"))


def _preferences(context: _Context) -> Measurement:
    from training.evaluation.gathered import measure_preferences

    return measure_preferences(context.input("artifact"))


def _corpus(context: _Context) -> Measurement:
    from training.evaluation.corpora import measure_corpus

    return measure_corpus(context.input("artifact"))


def _evaluation_sets(context: _Context) -> Measurement:
    from training.evaluation.corpora import measure_evaluation_sets

    return measure_evaluation_sets(context.input("artifact"))


def _tokenizer(context: _Context) -> Measurement:
    from training.evaluation.tokenizers import measure_tokenizer

    return measure_tokenizer(context.input("artifact"), context.inputs.get("corpus"))


def _packed_shards(context: _Context) -> Measurement:
    from training.evaluation.shards import measure_shards

    return measure_shards(
        context.input("artifact"), context.input("corpus"), context.input("tokenizer"), context.input("evaluation_sets")
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


def run(context: _Context) -> StageResult:
    """Measure the artifact and write the report."""
    asset = context.input("artifact").manifest.asset
    kind = kind_of(asset)
    if kind not in MEASURES:
        raise RecipeError(f"evaluate_data does not judge {asset}; it judges {', '.join(MEASURES)}")
    context.events.phase(f"measure {asset}")
    measurement = MEASURES[kind](context)
    measurement.write(context.out, asset, METRICS[kind])
    return StageResult(metrics=measurement.report.metrics)
