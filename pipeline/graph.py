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
        judged_with: Upstream assets that the evaluator reads beside the artifact.
        group: Group on the graph page.
    """

    stage: str
    inputs: dict[str, str | None]
    evaluator: str
    judged_with: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    group: str = "data"
    uses_gpu: bool = False


GRAPH: dict[str, Node] = {
    "raw_corpus": Node("raw_corpus", {}, "evaluate_data"),
    "corpus": Node("corpus", {"raw_corpus": None}, "evaluate_data"),
    "evaluation_sets": Node("evaluation_sets", {"corpus": None}, "evaluate_data", files=("harmful", "benign"),
                            group="evaluation"),
    "tokenizer": Node("tokenizer", {"corpus": None}, "evaluate_data", ("corpus",)),
    "packed_shards": Node("packed_shards", {"corpus": None, "tokenizer": None, "evaluation_sets": EXCLUSIONS},
                          "evaluate_data", ("corpus", "tokenizer", "evaluation_sets")),
    "instruction_data": Node("instruction_data", {"corpus": None, "evaluation_sets": EXCLUSIONS}, "evaluate_data",
                             ("evaluation_sets",), files=("harmful", "benign"), group="post_training_data"),
    "preference_data": Node("preference_data", {"instruction_data": None}, "evaluate_data", ("evaluation_sets",),
                            group="post_training_data"),
    "adapter_data": Node("adapter_data", {"corpus": None, "instruction_data": None, "evaluation_sets": EXCLUSIONS},
                         "evaluate_data", ("evaluation_sets",), group="post_training_data"),
    "base_model": Node("base_model", {"packed_shards": None, "tokenizer": None}, "evaluate_model",
                       ("evaluation_sets",), group="models", uses_gpu=True),
    "sft_model": Node("sft_model", {"base_model": None, "instruction_data": None, "tokenizer": None},
                      "evaluate_model", ("base_model", "evaluation_sets"), group="models", uses_gpu=True),
    "dpo_model": Node("dpo_model", {"sft_model": None, "preference_data": None, "tokenizer": None},
                      "evaluate_model", ("sft_model", "evaluation_sets"), group="models", uses_gpu=True),
    "lora_model": Node("lora_model", {"dpo_model": None, "adapter_data": None, "tokenizer": None},
                       "evaluate_model", ("dpo_model", "evaluation_sets"), group="models", uses_gpu=True),
}
