"""The nightly schedule over the whole graph."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pipeline.recipe import LoadedRecipe


def everything_job(prefix: list[str]) -> UnresolvedAssetJobDefinition:
    """A job over every asset and gate; an unchanged stage is reused and costs nothing."""
    return dg.define_asset_job("_".join([*prefix, "everything"]), selection=dg.AssetSelection.all(),
                               description="The whole graph, corpus to adapter. What has not changed is reused.")


def nightly_schedule(loaded: LoadedRecipe, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """The whole graph once a night, off until it is switched on."""
    nightly = loaded.recipe.nightly
    return dg.ScheduleDefinition(
        name=job.name.replace("everything", "nightly"), job=job, cron_schedule=f"{nightly.minute} {nightly.hour} * * *",
        execution_timezone=nightly.timezone, default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Materializes what has changed, every night.")
