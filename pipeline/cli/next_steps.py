"""What a person would do next, at the end of a run."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.graph import DEFAULT_RECIPE, GRAPH
from training.store.store import Store

_CHAT = "lora_model"
"""The model that `gatehouse chat` asks unless it is told otherwise."""


def next_steps(recipe: str, refused: Sequence[str], failed: bool, store: Store) -> list[tuple[str, str]]:
    """Commands and what each is for.

    Args:
        recipe: As the person named it.
        refused: Assets that their gates refused in this run.
        failed: Something else went wrong.
        store: The recipe's store.
    """
    of_recipe = "" if recipe == DEFAULT_RECIPE else f" -r {shlex.quote(recipe)}"
    program = command_name()
    if refused:
        return [
            (f"{program} gates --why {asset}{of_recipe}", "why it was refused, on which items, what can be done")
            for asset in refused
        ]
    if failed:
        return []

    steps = [(f"{program} up{of_recipe}", "the graph, the gates and the lineage in the browser")]
    models = [asset for asset, node in GRAPH.items() if node.group == "models" and store.promotion(asset)]
    if models:
        asked = "" if models[-1] == _CHAT else f" --asset {models[-1]}"
        steps.append((f"{program} chat{asked}{of_recipe}", f"talk to {models[-1]}"))
        steps.append((f"{program} status {models[-1]}{of_recipe}", "where its files are, and how to load them"))
    return steps


def command_name() -> str:
    """How this program is called from the current folder."""
    if shutil.which("gatehouse"):
        return "gatehouse"
    beside = Path(sys.executable).with_name("gatehouse")
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)
