"""One attribute per recipe, so that workspace.yaml can name any recipe as a code location of its own."""

import dagster as dg

from pipeline.build import build_definitions


def __getattr__(recipe: str) -> dg.Definitions:
    if recipe.startswith("_"):
        raise AttributeError(recipe)
    return build_definitions(recipe)
