"""`gatehouse recipe`: a recipe with everything filled in, its schema, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer
from rich.console import Console

from pipeline.cli.options import Overrides, Recipe, new_app
from pipeline.paths import ROOT
from pipeline.recipes.loader import LoadedRecipe, load_recipe, recipe_schema, render
from training.errors import SourceError
from training.specs.base_model import budget_in_words
from training.specs.origin import Origin
from training.specs.recipe_check import CheckAnswer

app = new_app("Look at recipes.")


@app.command()
def show(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Print the recipe with every default and override filled in."""
    typer.echo(render(load_recipe(recipe, overrides or []).recipe), nl=False)


@app.command()
def check(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Check a recipe before anything is spent: keys, values, files, model, batches, gates, tasks.

    All mistakes are shown at once, each with file, line and key. Nothing is trained and no weights are made.

    Exit codes: 0 good, 2 a mistake in the recipe.
    """
    from pipeline.building.planner import code_version
    from pipeline.building.recipe_check import check_recipe
    from pipeline.workspace import Workspace

    workspace = Workspace(recipe, overrides or [])
    loaded = workspace.loaded
    answer = check_recipe(loaded, workspace.launcher.entry)
    for asset in loaded.graph:
        code_version(asset, loaded)  # a stage whose code cannot be parsed would fail at night

    lines = [f"{loaded.path}: {summary(loaded, answer)}: good", *_source_lines(loaded.recipe.all_sources())]
    if loaded.recipe.base_model.is_trained:
        lines.insert(1, f"base_model trains for {budget_in_words(loaded.recipe.base_model, answer.parameters)}")
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for an editor's completion."""
    typer.echo(json.dumps(recipe_schema(), indent=1))


def summary(loaded: LoadedRecipe, answer: CheckAnswer) -> str:
    """What was looked at, in one line."""
    sources = len(loaded.recipe.all_sources())
    gates = sum(len(loaded.recipe.gates_of(asset)) for asset in loaded.graph)
    return (
        f"{len(loaded.graph)} assets, {gates} gates, {sources} source{'' if sources == 1 else 's'}, model: "
        f"{answer.model_type}, {_in_short(answer.parameters)} parameters"
    )


def _source_lines(sources: Sequence[Origin]) -> list[str]:
    """What is read of each source, and what is left out.

    Raises:
        SourceError: With every source that cannot be read, one a line.
    """
    from training.data.sources.source_state import describe_source

    lines, problems = [], []
    for source in sources:
        try:
            lines.append(describe_source(source, ROOT))
        except SourceError as error:
            problems.append(str(error))

    if problems:
        raise SourceError("\n".join(problems))
    return lines


def _in_short(number: int) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:,}"
