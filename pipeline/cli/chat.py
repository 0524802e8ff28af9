"""`gatehouse chat`: talk to a promoted model, in a process of its own because this one never loads torch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from pipeline.building.planner import promoted_input
from pipeline.cli.options import Recipe, new_app
from pipeline.cli.terminal import legible_environment
from pipeline.graph import models_of, require_model
from pipeline.paths import ROOT, variables
from pipeline.workspace import Workspace

app = new_app()


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="One question; without it, a conversation on the terminal.")] = "",
    recipe: Recipe = "tiny",
    asset: Annotated[str, typer.Option(help="Which promoted model answers; the recipe's last one by default.")] = "",
) -> None:
    """Talk to a promoted model."""
    raise typer.Exit(talk(recipe, asset, question))


def talk(recipe: str, asset: str, question: str) -> int:
    """Answer one question, or converse until the input ends; return the exit code.

    Raises:
        RecipeError: There is no such asset, or it is no model.
        InputRefused: The asset has no promoted version, or its bytes have changed.
    """
    workspace = Workspace(recipe)
    graph = workspace.loaded.graph
    asset = asset or models_of(graph)[-1]
    require_model(asset, graph, "--asset")
    model = promoted_input(asset, workspace.loaded, workspace.store)
    folder = workspace.store.verified_folder(model.asset, model.version, model.digest)

    command = [sys.executable, "-m", "training.chat", str(folder / "model"), *([question] if question else [])]
    return subprocess.call(command, cwd=ROOT, env={**os.environ, **variables(), **legible_environment()})
