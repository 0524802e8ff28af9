"""The graph: every asset, what it is made from, and what judges it. No Dagster here: the planner reads it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.recipe_messages import nearest
from training.errors import RecipeError
from training.specs.contracts import CONTRACTS

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


def _node(asset: str, headline: str, parts: dict[str, str] | None = None, files: tuple[str, ...] = (),
          group: str = "data") -> Node:
    contract = CONTRACTS[asset]
    return Node(asset, {name: (parts or {}).get(name) for name in contract.inputs}, contract.evaluator, headline,
                contract.judged_with, files, group, uses_gpu=group == "models")


_EXCLUDED: dict[str, str] = {"evaluation_sets": EXCLUSIONS}
GRAPH: dict[str, Node] = {
    "raw_corpus": _node("raw_corpus", headline="documents"),
    "corpus": _node("corpus", headline="documents"),
    "evaluation_sets": _node("evaluation_sets", headline="questions", files=_WRITTEN, group="evaluation"),
    "tokenizer": _node("tokenizer", headline="bytes_per_token"),
    "packed_shards": _node("packed_shards", headline="tokens", parts=_EXCLUDED),
    "instruction_data": _node("instruction_data", headline="conversations", parts=_EXCLUDED, files=_WRITTEN,
                              group="post_training_data"),
    "preference_data": _node("preference_data", headline="pairs", group="post_training_data"),
    "adapter_data": _node("adapter_data", headline="documents", parts=_EXCLUDED, group="post_training_data"),
    "base_model": _node("base_model", headline="heldout_perplexity", group="models"),
    "sft_model": _node("sft_model", headline="choice_accuracy_dcpmi", group="models"),
    "dpo_model": _node("dpo_model", headline="preference_accuracy", group="models"),
    "lora_model": _node("lora_model", headline="domain_gain", group="models"),
}


def require_asset(name: str, option: str = "") -> None:
    """Raise RecipeError where there is no such asset, with the nearest one.

    Args:
        option: Where it was written, such as `--why`.
    """
    if name not in GRAPH:
        where = f"{option} {name}: there is no such asset" if option else f"there is no asset {name!r}"
        raise RecipeError(f"{where}{nearest(name, GRAPH)}; the assets are {', '.join(GRAPH)}")


def require_model(name: str, option: str = "") -> None:
    """Raise RecipeError where there is no such asset, or it is no model."""
    require_asset(name, option)
    models = [asset for asset, node in GRAPH.items() if node.group == "models"]
    if name not in models:
        raise RecipeError(f"{option} {name}: this is no model; the models are {', '.join(models)}".strip())
