"""The terms on which a version is judged: its gates, the code that measures it, and what it is measured on."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.graph import stage_module
from pipeline.recipes.loader import LoadedRecipe
from training.errors import InputRefused
from training.job.fingerprint import fingerprint
from training.specs.base import digest_of
from training.specs.gates import Gate
from training.store.store import Store
from training.store.validity import Terms

SUITE = "evaluation_sets"


def terms(asset: str, loaded: LoadedRecipe, store: Store) -> Terms:
    """The terms on which an asset is judged today.

    Raises:
        InputRefused: It is judged with the evaluation sets, and none are promoted.
    """
    node = loaded.graph[asset]
    sets = store.promotion(SUITE) if SUITE in node.judged_with else None
    if sets is None and SUITE in node.judged_with:
        raise InputRefused(store.explain_unpromoted(SUITE))

    suite = {"evaluation_sets": sets.digest if sets else None, "evaluation": evaluation_section(loaded)}
    return Terms(
        thresholds_digest(loaded.recipe.gates_of(asset)),
        fingerprint(stage_module(node.kind.evaluator)),
        digest_of(suite),
    )


def thresholds_digest(gates: Sequence[Gate]) -> str:
    """Digest of an asset's gates."""
    return digest_of([gate.model_dump(mode="json") for gate in gates])


def evaluation_section(loaded: LoadedRecipe) -> dict[str, object]:
    """The recipe's section on how models are measured."""
    return loaded.recipe.evaluation.model_dump(mode="json")
