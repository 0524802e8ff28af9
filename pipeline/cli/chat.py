"""`gatehouse chat`: talk to a promoted model, in a process of its own because this one never loads torch."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.building.planner import promoted_input
from pipeline.cli.terminal import legible_environment
from pipeline.graph import require_model
from pipeline.paths import ROOT, home, store_root, variables
from pipeline.recipes.loader import load_recipe
from training.store.store import Store


def talk(recipe: str, asset: str, question: str) -> int:
    """Answer one question, or converse until the input ends; return the exit code.

    Raises:
        RecipeError: There is no such asset, or it is no model.
        InputRefused: The asset has no promoted version, or its bytes have changed.
    """
    require_model(asset, "--asset")
    loaded = load_recipe(recipe)
    store = Store(store_root(), loaded.recipe.name, cache=home() / "cache")
    used = promoted_input(asset, loaded, store)
    folder = store.verified_folder(used.asset, used.version, used.digest)
    command = [sys.executable, "-m", "training.chat", str(folder / "model"), *([question] if question else [])]
    return subprocess.call(command, cwd=ROOT, env={**os.environ, **variables(), **legible_environment()})
