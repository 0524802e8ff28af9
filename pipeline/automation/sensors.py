"""Sensors: new source files start the chain; failures and refusals are posted to a webhook."""

import os

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pipeline.environment import ROOT, home, runs
from pipeline.graph import GRAPH
from pipeline.reaper import clean_up
from pipeline.recipe import LoadedRecipe
from pipeline.webhook import WEBHOOK, post
from training.data.source_state import source_state
from training.errors import SourceError


def source_sensor(loaded: LoadedRecipe, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Starts the whole graph when the files of the recipe's sources have changed; off until it is switched on."""

    @dg.sensor(name=job.name.replace("everything", "sources_changed"), job=job, minimum_interval_seconds=60,
               description="Starts the chain when a source file of the corpus is added, changed or removed.")
    def sources_changed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            state = source_state(loaded.recipe.sources, ROOT)
        except SourceError as error:
            return dg.SkipReason(str(error))
        if context.cursor == state:
            return dg.SkipReason("The source files are as they were.")
        if context.cursor is None:
            context.update_cursor(state)
            return dg.SkipReason("First look at the source files; a change from now on starts the chain.")
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=state)], cursor=state)

    return sources_changed


def alert_sensors(loaded: LoadedRecipe, prefix: list[str]) -> list[dg.SensorDefinition]:
    """Sensors that post failed runs and refused artifacts to `$GATEHOUSE_WEBHOOK_URL`; without one they do nothing.

    Args:
        loaded: The recipe whose assets they watch.
        prefix: Key prefix of its assets.
    """
    recipe = loaded.recipe.name
    keys = {dg.AssetKey([*prefix, asset]) for asset in GRAPH}

    @dg.run_failure_sensor(name=f"{recipe}_run_failed", default_status=dg.DefaultSensorStatus.RUNNING,
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
               default_status=dg.DefaultSensorStatus.RUNNING,
               description=f"Posts artifacts that a gate refused to ${WEBHOOK}.")
    def gate_refused(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        url = os.environ.get(WEBHOOK)
        records = _new_verdicts(context)
        if not url:
            return dg.SkipReason(f"{WEBHOOK} is not set")
        refused = [verdict for verdict in records if verdict.asset_key in keys and not verdict.passed]
        for verdict in refused:
            post(url, {"event": "gate_refused", "recipe": recipe, "asset": verdict.asset_key.to_user_string(),
                       "gate": verdict.check_name, "reason": verdict.description or ""})
        return dg.SkipReason(f"{len(refused)} refusals posted")

    return [run_failed, gate_refused]


def dead_runs_sensor(loaded: LoadedRecipe) -> dg.SensorDefinition:
    """Marks runs as failed whose process is gone, and ends what they left running, so that nothing waits for them."""

    @dg.sensor(name=f"{loaded.recipe.name}_dead_runs", minimum_interval_seconds=60,
               default_status=dg.DefaultSensorStatus.RUNNING,
               description="Marks runs as failed whose process was killed, and ends what they left running.")
    def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        done = clean_up(context.instance, home(), runs())
        return dg.SkipReason(" ".join(done) or "every unfinished run is alive, and nothing was left running")

    return dead_runs


def _new_verdicts(context: dg.SensorEvaluationContext) -> list[dg.AssetCheckEvaluation]:
    """Gate verdicts since the cursor, which moves past them; the first look only sets the cursor."""
    filter_ = dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION,
                                    after_cursor=int(context.cursor) if context.cursor else None)
    storage = context.instance.event_log_storage
    records = storage.get_event_records(filter_, limit=1000 if context.cursor else 1, ascending=bool(context.cursor))
    newest = str(max((record.storage_id for record in records), default=int(context.cursor or 0)))
    first_look = context.cursor is None
    context.update_cursor(newest)
    if first_look:
        return []
    return [event.asset_check_evaluation_data for record in records
            if (event := record.event_log_entry.dagster_event) is not None]
