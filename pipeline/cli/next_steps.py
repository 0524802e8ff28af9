"""What a person would do next, at the end of a run."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.graph import DEFAULT_RECIPE, Graph, models_of
from training.store.store import Store


def next_steps(recipe: str, graph: Graph, refused: Sequence[str], failed: bool, store: Store) -> list[tuple[str, str]]:
    """Commands, each with what it does.

    Args:
        recipe: As the person named it.
        graph: Its assets.
        refused: Assets that their gates refused in this run.
        failed: Something else went wrong.
        store: The recipe's store.
    """
    recipe_option = "" if recipe == DEFAULT_RECIPE else f" -r {shlex.quote(recipe)}"
    program = command_name()
    if refused:
        return [
            (f"{program} gates --why {asset}{recipe_option}", "why it was refused, on which items, what can be done")
            for asset in refused
        ]
    if failed:
        return []

    steps = [(f"{program} up{recipe_option}", "the graph, the gates and the lineage in the browser")]
    models = [asset for asset in models_of(graph) if store.promotion(asset)]
    if models:
        asset_option = "" if models[-1] == models_of(graph)[-1] else f" --asset {models[-1]}"
        steps.append((f"{program} chat{asset_option}{recipe_option}", f"talk to {models[-1]}"))
        steps.append((f"{program} status {models[-1]}{recipe_option}", "where its files are, and how to load them"))
    return steps


def command_name() -> str:
    """How this program is called from the current folder."""
    if shutil.which("gatehouse"):
        return "gatehouse"

    script = Path(sys.executable).with_name("gatehouse")
    try:
        return str(script.relative_to(Path.cwd()))
    except ValueError:
        return str(script)
