"""`gatehouse recipe check`: everything that can be wrong before a night is spent on it."""

from __future__ import annotations

from rich.console import Console

from pipeline.graph import GRAPH
from pipeline.planner import code_version
from pipeline.recipe import load_recipe


def check(recipe: str, overrides: list[str]) -> None:
    """Check the recipe, the files it names and the code of its stages.

    Raises:
        RecipeError: With every mistake found, one a line.
    """
    loaded = load_recipe(recipe, overrides)
    for asset in GRAPH:
        loaded.files(asset)
        code_version(asset, loaded)
    gates = sum(len(gates) for gates in loaded.recipe.gates.values())
    Console().print(f"{loaded.path}: {len(GRAPH)} assets, {gates} gates, {len(loaded.recipe.sources)} sources: good",
                    highlight=False)
