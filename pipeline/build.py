"""From a recipe to Dagster definitions."""

from __future__ import annotations

import os

import dagster as dg

from pipeline.assets.adapter_data import ADAPTER_DATA
from pipeline.assets.base_model import BASE_MODEL
from pipeline.assets.corpus import CORPUS
from pipeline.assets.dpo_model import DPO_MODEL
from pipeline.assets.evaluation_sets import EVALUATION_SETS
from pipeline.assets.instruction_data import INSTRUCTION_DATA
from pipeline.assets.lora_model import LORA_MODEL
from pipeline.assets.packed_shards import PACKED_SHARDS
from pipeline.assets.preference_data import PREFERENCE_DATA
from pipeline.assets.raw_corpus import RAW_CORPUS
from pipeline.assets.sft_model import SFT_MODEL
from pipeline.assets.stage import stage_asset
from pipeline.assets.tokenizer import TOKENIZER
from pipeline.automation.schedules import everything_job, nightly_schedule
from pipeline.automation.sensors import alert_sensors, dead_runs_sensor, source_sensor
from pipeline.checks.gates import gate_checks
from pipeline.graph import DEFAULT_RECIPE, GRAPH
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.resources.settings import LauncherResource, RecipeResource, StoreResource
from pipeline.resources.tracker import TrackerResource
from training.errors import RecipeError

STAGES = (
    RAW_CORPUS, CORPUS, EVALUATION_SETS, TOKENIZER, PACKED_SHARDS, INSTRUCTION_DATA, PREFERENCE_DATA, ADAPTER_DATA,
    BASE_MODEL, SFT_MODEL, DPO_MODEL, LORA_MODEL,
)


def build_definitions(recipe: str = "") -> dg.Definitions:
    """The definitions of one recipe.

    Args:
        recipe: Name or path; empty takes `$GATEHOUSE_RECIPE`, by default tiny. Any other recipe than the default one
            has its name as key prefix.

    Raises:
        RecipeError: The recipe is wrong.
    """
    name = recipe or os.environ.get("GATEHOUSE_RECIPE", DEFAULT_RECIPE)
    loaded = load_recipe(name)
    prefix = key_prefix(loaded)
    assets = [stage_asset(stage, loaded, prefix) for stage in STAGES]
    if [stage.name for stage in STAGES] != list(GRAPH):
        raise RecipeError("pipeline/build.py and pipeline/graph.py list different assets")
    job = everything_job(prefix)
    return dg.Definitions(
        assets=assets,
        asset_checks=[gate_checks(asset, loaded, prefix) for asset in GRAPH],
        jobs=[job],
        schedules=[nightly_schedule(loaded, job)],
        sensors=[source_sensor(loaded, job), *alert_sensors(loaded, prefix), dead_runs_sensor(prefix)],
        executor=dg.in_process_executor,
        resources={
            "recipe": RecipeResource(name=name),
            "store": StoreResource(),
            "launcher": LauncherResource(),
            "tracker": tracker_resource(),
        },
    )


def key_prefix(loaded: LoadedRecipe) -> list[str]:
    """Key prefix of a recipe's assets."""
    return [] if loaded.recipe.name == DEFAULT_RECIPE else [loaded.recipe.name]


def tracker_resource() -> TrackerResource:
    """The MLflow tracker, with the addresses that `gatehouse up` serves."""
    return TrackerResource(
        dagster_url=os.environ.get("GATEHOUSE_DAGSTER_URL", "http://127.0.0.1:3000"),
        mlflow_url=os.environ.get("GATEHOUSE_MLFLOW_URL", "http://127.0.0.1:5000"),
    )
