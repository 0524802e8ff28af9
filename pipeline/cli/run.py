"""`gatehouse run`: materialize a selection of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.cli.options import Overrides, Recipe, new_app
from pipeline.graph import Graph, require_asset, upstream_of
from training.errors import RecipeError

app = new_app()


@app.command()
def run(
    recipe: Recipe = "tiny",
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ASSETS",
            help="Assets, separated by commas; `+name` takes what is upstream too. Repeatable; all if left out.",
        ),
    ] = None,
    overrides: Overrides = None,
    launcher: Annotated[str, typer.Option(help="Entry of launchers.yaml; the recipe's by default.")] = "",
    force: Annotated[bool, typer.Option(help="Run the jobs even when nothing has changed.")] = False,
) -> None:
    """Materialize the graph: build what has changed, reuse the rest, stop where a gate refuses.

    Exit codes: 0 all promoted, 1 a fault or a refusal, 2 a mistake in recipe or data, 130 interrupted.

    Examples: `gatehouse run`, `gatehouse run --select +sft_model`, `gatehouse run --set base_model.steps=400`.
    """
    from pipeline.cli.execution import Request, materialize

    raise typer.Exit(materialize(Request(recipe, tuple(overrides or ()), launcher, force), select or []))


def selected(select: Sequence[str], graph: Graph) -> list[str]:
    """The assets that a selection names, in the order of the graph; all of them where it names none.

    Raises:
        RecipeError: There is no such asset, or what is downstream is asked for.
    """
    names = [name.strip() for item in select for name in item.split(",")]
    if not names or "*" in names:
        return list(graph)

    for name in names:
        if name.endswith("+"):
            raise RecipeError(f"--select {name}: what is downstream cannot be asked for; +name takes what is upstream")
        require_asset(name.removeprefix("+"), graph, "--select")

    chosen: set[str] = set()
    for name in names:
        chosen |= upstream_of(name[1:], graph) if name.startswith("+") else {name}
    return [asset for asset in graph if asset in chosen]
