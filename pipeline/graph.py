"""The graph: every asset, what it is made from, and what judges it. No Dagster here: the planner reads it."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_RECIPE = "tiny"
EXCLUSIONS = "exclusions.parquet"


@dataclass(frozen=True)
class Node:
    """One asset.

    Attributes:
        stage: Module under `training.stages` that computes it.
        inputs: Upstream asset to the part of it that decides the result; None means all of it.
        files: Fields of the recipe section that name files beside the recipe.
        evaluator: Module under `training.stages` that measures it.
        headline: The measured metric that sums it up.
        judged_with: Upstream assets that the evaluator reads beside the artifact.
        group: Group on the graph page.
    """

    stage: str
    inputs: dict[str, str | None]
    evaluator: str
    headline: str
    judged_with: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    group: str = "data"
    uses_gpu: bool = False


_WRITTEN = ("harmful", "benign")

GRAPH: dict[str, Node] = {
    "raw_corpus": Node("raw_corpus", inputs={}, evaluator="evaluate_data", headline="documents"),
    "corpus": Node("corpus", inputs={"raw_corpus": None}, evaluator="evaluate_data", headline="documents"),
    "evaluation_sets": Node(
        "evaluation_sets", inputs={"corpus": None}, files=_WRITTEN, evaluator="evaluate_data", headline="questions",
        group="evaluation"),
    "tokenizer": Node(
        "tokenizer", inputs={"corpus": None}, evaluator="evaluate_data", judged_with=("corpus",),
        headline="bytes_per_token"),
    "packed_shards": Node(
        "packed_shards", inputs={"corpus": None, "tokenizer": None, "evaluation_sets": EXCLUSIONS},
        evaluator="evaluate_data", judged_with=("corpus", "tokenizer", "evaluation_sets"), headline="tokens"),
    "instruction_data": Node(
        "instruction_data", inputs={"corpus": None, "evaluation_sets": EXCLUSIONS}, files=_WRITTEN,
        evaluator="evaluate_data", judged_with=("evaluation_sets",), headline="conversations",
        group="post_training_data"),
    "preference_data": Node(
        "preference_data", inputs={"instruction_data": None}, evaluator="evaluate_data",
        judged_with=("evaluation_sets",), headline="pairs", group="post_training_data"),
    "adapter_data": Node(
        "adapter_data", inputs={"corpus": None, "instruction_data": None, "evaluation_sets": EXCLUSIONS},
        evaluator="evaluate_data", judged_with=("evaluation_sets",), headline="documents",
        group="post_training_data"),
    "base_model": Node(
        "base_model", inputs={"packed_shards": None, "tokenizer": None}, evaluator="evaluate_model",
        judged_with=("evaluation_sets",), headline="heldout_perplexity", group="models", uses_gpu=True),
    "sft_model": Node(
        "sft_model",
        inputs={"base_model": None, "instruction_data": None, "packed_shards": None, "tokenizer": None},
        evaluator="evaluate_model", judged_with=("base_model", "evaluation_sets"), headline="choice_accuracy_dcpmi",
        group="models", uses_gpu=True),
    "dpo_model": Node(
        "dpo_model", inputs={"sft_model": None, "preference_data": None, "tokenizer": None},
        evaluator="evaluate_model", judged_with=("sft_model", "evaluation_sets"), headline="preference_accuracy",
        group="models", uses_gpu=True),
    "lora_model": Node(
        "lora_model", inputs={"dpo_model": None, "adapter_data": None, "tokenizer": None}, evaluator="evaluate_model",
        judged_with=("dpo_model", "evaluation_sets"), headline="domain_gain", group="models", uses_gpu=True),
}
