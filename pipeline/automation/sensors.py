"""Sensors: new source files start the chain; failures and refusals are posted to a webhook."""

from __future__ import annotations

import os

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from training.data.source_state import source_state

from pipeline.environment import ROOT
from pipeline.recipe import LoadedRecipe
from pipeline.webhook import post

WEBHOOK = "GATEHOUSE_WEBHOOK_URL"


def source_sensor(loaded: LoadedRecipe, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Starts the whole graph when the files of the recipe's sources have changed; off until it is switched on."""

    @dg.sensor(name=job.name.replace("everything", "sources_changed"), job=job, minimum_interval_seconds=60,
               description="Starts the chain when a source file of the corpus is added, changed or removed.")
    def sources_changed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        state = source_state(loaded.recipe.sources, ROOT)
        if context.cursor == state:
            return dg.SkipReason("The source files are as they were.")
        if context.cursor is None:
            context.update_cursor(state)
            return dg.SkipReason("First look at the source files; a change from now on starts the chain.")
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=state)], cursor=state)

    return sources_changed


def alert_sensors(recipe: str) -> list[dg.SensorDefinition]:
    """Sensors that post failed runs and refused artifacts to `$GATEHOUSE_WEBHOOK_URL`; without one they do nothing."""

    @dg.run_failure_sensor(name=f"{recipe}_run_failed", monitor_all_code_locations=False,
                           description=f"Posts failed runs to ${WEBHOOK}.")
    def run_failed(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        url = os.environ.get(WEBHOOK)
        if not url:
            return dg.SkipReason(f"{WEBHOOK} is not set")
        steps = [event.step_key for event in context.get_step_failure_events() if event.step_key]
        post(url, {"event": "run_failed", "recipe": recipe, "run_id": context.dagster_run.run_id, "steps": steps,
                   "message": context.failure_event.message or ""})
        return None

    @dg.sensor(name=f"{recipe}_gate_refused", minimum_interval_seconds=30,
               description=f"Posts artifacts that a gate refused to ${WEBHOOK}.")
    def gate_refused(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        url = os.environ.get(WEBHOOK)
        records = context.instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION,
                                  after_cursor=int(context.cursor) if context.cursor else None),
            limit=1000, ascending=True)
        if records:
            context.update_cursor(str(records[-1].storage_id))
        if not url:
            return dg.SkipReason(f"{WEBHOOK} is not set")
        refused = [event for record in records if (event := record.event_log_entry.dagster_event)
                   and not event.asset_check_evaluation_data.passed]
        for event in refused:
            verdict = event.asset_check_evaluation_data
            post(url, {"event": "gate_refused", "recipe": recipe, "asset": verdict.asset_key.to_user_string(),
                       "gate": verdict.check_name, "reason": verdict.description or ""})
        return dg.SkipReason(f"{len(refused)} refusals posted")

    return [run_failed, gate_refused]
