"""`gatehouse recipe check`: everything that can be wrong before a night is spent on it."""

from __future__ import annotations

from rich.console import Console

from pipeline.graph import GRAPH
from pipeline.planner import code_version
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.recipe_check import check_recipe
from pipeline.resources.settings import chosen_launcher
from training.specs.recipe_check import CheckAnswer


def check(recipe: str, overrides: list[str]) -> None:
    """Check the recipe, the files it names, its model and the code of its stages.

    Raises:
        RecipeError: With every mistake found, one a line.
    """
    loaded = load_recipe(recipe, overrides)
    answer = check_recipe(loaded, chosen_launcher(loaded))
    for asset in GRAPH:
        code_version(asset, loaded)
    Console(soft_wrap=True).print(f"{loaded.path}: {looked_at(loaded, answer)}: good", markup=False, highlight=False)


def looked_at(loaded: LoadedRecipe, answer: CheckAnswer) -> str:
    """What was looked at, in one line."""
    sources = len(loaded.recipe.sources)
    gates = sum(len(gates) for gates in loaded.recipe.gates.values())
    return (f"{len(GRAPH)} assets, {gates} gates, {sources} source{'' if sources == 1 else 's'}, model: "
            f"{answer.model_type}, {_counted(answer.parameters)} parameters")


def _counted(number: int) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:,}"
