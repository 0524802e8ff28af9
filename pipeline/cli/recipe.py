"""`gatehouse recipe check`: everything that can be wrong before a night is spent on it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from pipeline.building.planner import code_version
from pipeline.building.recipe_check import check_recipe
from pipeline.graph import GRAPH
from pipeline.jobs.launcher import launcher_entry
from pipeline.paths import ROOT
from pipeline.recipes.loader import LoadedRecipe, load_recipe
from training.data.sources.source_state import describe_source
from training.errors import SourceError
from training.specs.raw_corpus import Source
from training.specs.recipe_check import CheckAnswer


def check(recipe: str, overrides: list[str]) -> None:
    """Check the recipe, the files it names, its model and the code of its stages.

    Raises:
        RecipeError: With every mistake found, one a line.
        SourceError: With every source that cannot be read, one a line.
    """
    loaded = load_recipe(recipe, overrides)
    answer = check_recipe(loaded, launcher_entry(loaded))
    for asset in GRAPH:
        code_version(asset, loaded)
    lines = _source_lines(loaded.recipe.sources)
    for line in (f"{loaded.path}: {looked_at(loaded, answer)}: good", *lines):
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _source_lines(sources: Sequence[Source]) -> list[str]:
    """What is read of each source, and what is left out."""
    lines, problems = [], []
    for source in sources:
        try:
            lines.append(describe_source(source, ROOT))
        except SourceError as error:
            problems.append(str(error))
    if problems:
        raise SourceError("\n".join(problems))
    return lines


def looked_at(loaded: LoadedRecipe, answer: CheckAnswer) -> str:
    """What was looked at, in one line."""
    sources = len(loaded.recipe.sources)
    gates = sum(len(gates) for gates in loaded.recipe.gates.values())
    return (
        f"{len(GRAPH)} assets, {gates} gates, {sources} source{'' if sources == 1 else 's'}, model: "
        f"{answer.model_type}, {_counted(answer.parameters)} parameters"
    )


def _counted(number: int) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:,}"
