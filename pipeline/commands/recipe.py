"""`gatehouse recipe check`: everything that can be wrong before a night is spent on it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from pipeline.environment import ROOT
from pipeline.graph import GRAPH
from pipeline.planner import code_version
from pipeline.recipe import load_recipe
from training.data.source_state import describe_source
from training.errors import SourceError
from training.specs.raw_corpus import Source


def check(recipe: str, overrides: list[str]) -> None:
    """Check the recipe, the files it names and the code of its stages.

    Raises:
        RecipeError: With every mistake found, one a line.
        SourceError: With every source that cannot be read, one a line.
    """
    loaded = load_recipe(recipe, overrides)
    for asset in GRAPH:
        loaded.files(asset)
        code_version(asset, loaded)
    lines = _source_lines(loaded.recipe.sources)
    gates = sum(len(gates) for gates in loaded.recipe.gates.values())
    sources = f"{len(lines)} source{'' if len(lines) == 1 else 's'}"
    for line in (f"{loaded.path}: {len(GRAPH)} assets, {gates} gates, {sources}: good", *lines):
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
