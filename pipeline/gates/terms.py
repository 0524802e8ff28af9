"""The terms on which a version is judged: its gates, the code that measures it, and what it is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.graph import stage_module
from pipeline.recipes.loader import LoadedRecipe
from training.errors import InputRefused
from training.job.fingerprint import fingerprint
from training.specs.base import digest_of
from training.specs.gates import Gate
from training.specs.kinds import kind_of
from training.store.store import Store
from training.store.validity import Terms

SUITE = "evaluation_sets"


def terms(asset: str, loaded: LoadedRecipe, store: Store) -> Terms:
    """The terms on which an asset is judged today.

    Raises:
        InputRefused: Something that it is judged with, and not made from, is not promoted.
    """
    node = loaded.graph[asset]
    sets = _promoted_digest(SUITE, store) if SUITE in node.judged_with else None
    beside = {name: _promoted_digest(name, store) for name in node.judged_with if name not in (*node.inputs, SUITE)}
    return Terms(
        thresholds_digest(loaded.recipe.gates_of(asset)),
        fingerprint(stage_module(node.kind.evaluator)),
        digest_of_suite(sets, beside, evaluation_section(asset, loaded)),
    )


def digest_of_suite(sets: str | None, beside: Mapping[str, str], section: Mapping[str, object]) -> str:
    """Digest of what a version is measured on.

    Args:
        sets: Digest of the evaluation sets; None where it is not measured on them.
        beside: Digests of what else its evaluation reads and it was not made from, such as the tokenizer by which the
            mask of conversations is measured.
        section: The recipe's, on how it is measured.
    """
    further = {"beside": dict(beside)} if beside else {}
    return digest_of({"evaluation_sets": sets, "evaluation": section, **further})


def _promoted_digest(asset: str, store: Store) -> str:
    pointer = store.promotion(asset)
    if pointer is None:
        raise InputRefused(store.explain_unpromoted(asset))
    return pointer.digest


def thresholds_digest(gates: Sequence[Gate]) -> str:
    """Digest of an asset's gates."""
    return digest_of([gate.model_dump(mode="json") for gate in gates])


def evaluation_section(asset: str, loaded: LoadedRecipe) -> dict[str, object]:
    """What an asset's evaluation is told by the recipe: how models are measured, and packing for which contexts."""
    section = loaded.recipe.evaluation
    if kind_of(asset) == "packed_shards":
        section = section.model_copy(update={"packing_contexts": loaded.recipe.packed_shards.contexts})
    return section.model_dump(mode="json")
