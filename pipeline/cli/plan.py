"""`gatehouse plan`: what a run would build and what it would reuse."""

from __future__ import annotations

from rich.table import Table

from pipeline.building.recipe_check import kept_answer
from pipeline.cli.console import make_console
from pipeline.cli.options import Overrides, Recipe, new_app
from pipeline.upkeep.asset_status import survey
from pipeline.workspace import Workspace
from training.specs.base_model import budget_in_words

app = new_app()


@app.command()
def plan(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Say what `gatehouse run` would build and what it would reuse, and why. Nothing runs."""
    workspace = Workspace(recipe, overrides or [])
    table = Table(title=f"recipe {recipe}", title_justify="left")
    for name in ("asset", "would", "why"):
        table.add_column(name, overflow="fold")

    for status in survey(workspace.loaded, workspace.store):
        table.add_row(
            status.asset,
            "[green]reuse[/]" if status.fresh else "[yellow]build[/]",
            status.shown.version if status.fresh and status.shown else status.why,
        )
    console = make_console()
    console.print(table)
    model = workspace.loaded.recipe.base_model
    if model.is_trained:
        answer = kept_answer(workspace.loaded, workspace.launcher.entry)
        words = budget_in_words(model, answer.parameters if answer else 0)
        if answer is None and not model.steps:
            words += "; `gatehouse recipe check` says how many"
        console.print(f"base_model trains for {words}", highlight=False)
