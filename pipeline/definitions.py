"""The Dagster definitions of a recipe.

The module is the code location of the default recipe, found as `defs`. workspace.yaml can name any other recipe as a
location of its own: each is an attribute, such as `smoke`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import dagster as dg

from pipeline.defs.assets import stage_asset
from pipeline.defs.checks import gate_checks
from pipeline.defs.resources import LauncherResource, RecipeResource, StoreResource, TrackerResource
from pipeline.defs.schedules import everything_job, nightly_schedule
from pipeline.defs.sensors import alert_sensors, dead_runs_sensor, source_sensor
from pipeline.graph import DEFAULT_RECIPE
from pipeline.paths import dagster_url, mlflow_url
from pipeline.recipes.loader import LoadedRecipe, load_recipe


def build_definitions(recipe: str = "", overrides: Sequence[str] = ()) -> dg.Definitions:
    """The definitions of one recipe.

    Args:
        recipe: Name or path; empty takes `$GATEHOUSE_RECIPE`, by default tiny. Any other recipe than the default one
            has its name as key prefix.
        overrides: Values for this time only, such as `base_model.steps=200`; they may change which assets there are.

    Raises:
        RecipeError: The recipe is wrong.
    """
    name = recipe or os.environ.get("GATEHOUSE_RECIPE", DEFAULT_RECIPE)
    loaded = load_recipe(name, overrides)
    prefix = key_prefix(loaded)
    job = everything_job(prefix)

    return dg.Definitions(
        assets=[stage_asset(asset, loaded, prefix) for asset in loaded.graph],
        asset_checks=[gate_checks(asset, loaded, prefix) for asset in loaded.graph],
        jobs=[job],
        schedules=[nightly_schedule(loaded, job)],
        sensors=[source_sensor(loaded, job), *alert_sensors(loaded, prefix), dead_runs_sensor(prefix)],
        executor=dg.in_process_executor,
        resources={
            "recipe": RecipeResource(name=name),
            "store": StoreResource(),
            "launcher": LauncherResource(),
            "tracker": TrackerResource(dagster_url=dagster_url(), mlflow_url=mlflow_url()),
        },
    )


def key_prefix(loaded: LoadedRecipe) -> list[str]:
    """Key prefix of a recipe's assets."""
    return [] if loaded.recipe.name == DEFAULT_RECIPE else [loaded.recipe.name]


@functools.cache
def _location(recipe: str) -> dg.Definitions:
    """A code location's definitions; Dagster asks for them several times while it loads them."""
    return build_definitions(recipe)


def __getattr__(recipe: str) -> dg.Definitions:
    # Built when asked: commands import this module for the functions alone.
    if recipe.startswith("_"):
        raise AttributeError(recipe)
    return _location("" if recipe == "defs" else recipe)


def __dir__() -> list[str]:
    return [*globals(), "defs"]  # Dagster looks for definitions among the attributes that a module lists
