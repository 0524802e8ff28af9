"""`gatehouse plan`: what a run would build and what it would reuse."""

from __future__ import annotations

from rich.table import Table

from pipeline.cli.console import make_console
from pipeline.cli.options import Overrides, Recipe, new_app
from pipeline.upkeep.asset_status import survey
from pipeline.workspace import Workspace

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
    make_console().print(table)
