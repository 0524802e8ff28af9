"""The nightly schedule over the whole graph."""

from __future__ import annotations

import os

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pipeline.defs.missed_nights import missed_nights
from pipeline.defs.webhook import WEBHOOK, post
from pipeline.recipes.loader import LoadedRecipe

MISSED = "gatehouse/missed_nights"


def everything_job(prefix: list[str]) -> UnresolvedAssetJobDefinition:
    """A job over every asset and gate; an unchanged stage is reused and costs nothing."""
    return dg.define_asset_job(
        "_".join([*prefix, "everything"]),
        selection=dg.AssetSelection.all(),
        description="The whole graph, corpus to adapter. What has not changed is reused.",
    )


def nightly_schedule(loaded: LoadedRecipe, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """The whole graph once a night, off until it is switched on.

    Nights on which nothing was started are named in a tag of the next run, and posted to the webhook.
    """
    nightly = loaded.recipe.nightly
    cron = f"{nightly.minute} {nightly.hour} * * *"

    @dg.schedule(
        name=job.name.replace("everything", "nightly"),
        job=job,
        cron_schedule=cron,
        execution_timezone=nightly.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Materializes what has changed, every night.",
    )
    def at_night(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        missed = [f"{time:%Y-%m-%d %H:%M}" for time in missed_nights(context, cron, nightly.timezone)]
        if not missed:
            return dg.RunRequest()

        nights = missed[0] if len(missed) == 1 else f"{len(missed)} nights, {missed[0]} to {missed[-1]}"
        message = (
            f"Nothing was started at {', '.join(missed)} ({nightly.timezone}): the scheduler did not run or "
            "could not load the recipe. The run of this night builds what has changed since."
        )
        context.log.warning(message)
        if url := os.environ.get(WEBHOOK):
            post(url, {"event": "nights_missed", "recipe": loaded.recipe.name, "nights": missed, "message": message})

        return dg.RunRequest(tags={MISSED: nights})

    return at_night
