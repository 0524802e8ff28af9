"""Sensors: new source files start the chain; failures and refusals are posted to a webhook."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from pipeline.defs.dead_runs import clean_up
from pipeline.defs.webhook import WEBHOOK, post
from pipeline.paths import ROOT, home, runs
from pipeline.recipes.loader import LoadedRecipe
from training.data.sources.source_state import source_state
from training.errors import SourceError

_FIRST_LOOK = "first_look"
_HISTORY = 20


def source_sensor(loaded: LoadedRecipe, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Starts the whole graph when the files of the recipe's sources have changed; off until it is switched on.

    A file that is still being copied changes from look to look: the chain starts once two looks saw the same.
    """

    @dg.sensor(
        name=job.name.replace("everything", "sources_changed"),
        job=job,
        minimum_interval_seconds=60,
        description="Starts the chain when a file of the recipe's sources is added, changed or removed, and two "
        "looks have seen the same.",
    )
    def sources_changed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            state = source_state(loaded.recipe.all_sources(), ROOT)
        except SourceError as error:
            return dg.SkipReason(str(error))

        if context.cursor is None:
            context.update_cursor(str(_SourceCursor(state)))
            return dg.SkipReason("First look at the source files; a change from now on starts the chain.")

        cursor = _SourceCursor.parse(context.cursor)
        if state == cursor.started:
            context.update_cursor(str(_SourceCursor(state)))
            return dg.SkipReason("The source files are as they were.")
        if state != cursor.seen:
            context.update_cursor(str(_SourceCursor(cursor.started, state, f"{time.time():.3f}")))
            return dg.SkipReason("The source files have changed; the chain starts when the next look sees the same.")

        # The same files may come and go: a key of their state alone would start the chain for them only once.
        request = dg.RunRequest(run_key=f"{state} seen at {cursor.since}")
        return dg.SensorResult(run_requests=[request], cursor=str(_SourceCursor(state)))

    return sources_changed


@dataclass(frozen=True)
class _SourceCursor:
    """What the sensor of the sources remembers between its looks.

    Attributes:
        started: The state for which the chain was started, or that the first look saw.
        seen: Another state that the last look saw; empty when it saw none.
        since: Seconds since 1970 at which `seen` was first seen.
    """

    started: str
    seen: str = ""
    since: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.started, self.seen, self.since)))

    @classmethod
    def parse(cls, cursor: str) -> _SourceCursor:
        """Read a cursor."""
        return cls(*cursor.split(" ")[:3])


def alert_sensors(loaded: LoadedRecipe, prefix: list[str]) -> list[dg.SensorDefinition]:
    """Sensors that post failed runs and refused artifacts to `$GATEHOUSE_WEBHOOK_URL`; without one they do nothing.

    Args:
        loaded: The recipe whose assets they watch.
        prefix: Key prefix of its assets.
    """
    gates = [
        dg.AssetCheckKey(dg.AssetKey([*prefix, asset]), gate.metric)
        for asset in loaded.graph
        for gate in loaded.recipe.gates_of(asset)
    ]
    return [_run_failed_sensor(loaded.recipe.name, prefix), _gate_refused_sensor(loaded.recipe.name, prefix, gates)]


def _run_failed_sensor(recipe: str, prefix: list[str]) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name="_".join([*prefix, "run_failed"]),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Posts failed runs to ${WEBHOOK}.",
    )
    def run_failed(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        url = os.environ.get(WEBHOOK)
        if not url:
            return dg.SkipReason(f"{WEBHOOK} is not set")

        notice = {
            "event": "run_failed",
            "recipe": recipe,
            "run_id": context.dagster_run.run_id,
            "steps": [event.step_key for event in context.get_step_failure_events() if event.step_key],
            "message": context.failure_event.message or "",
        }
        post(url, notice)
        return None

    return run_failed


def _gate_refused_sensor(recipe: str, prefix: list[str], gates: Sequence[dg.AssetCheckKey]) -> dg.SensorDefinition:
    @dg.sensor(
        name="_".join([*prefix, "gate_refused"]),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Posts artifacts that a gate refused to ${WEBHOOK}.",
    )
    def gate_refused(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        url = os.environ.get(WEBHOOK)
        if not url:
            context.update_cursor(None)  # a webhook that is set later gets what is refused from then on
            return dg.SkipReason(f"{WEBHOOK} is not set")

        refused = _new_refusals(context, gates)
        for verdict in refused:
            notice = {
                "event": "gate_refused",
                "recipe": recipe,
                "asset": verdict.asset_key.to_user_string(),
                "gate": verdict.check_name,
                "reason": verdict.description or "",
            }
            post(url, notice)

        return dg.SkipReason(f"{len(refused)} refusals posted")

    return gate_refused


def dead_runs_sensor(prefix: list[str]) -> dg.SensorDefinition:
    """Marks runs whose process is gone as failed, and ends what they left running, so that nothing waits for them.

    Args:
        prefix: Key prefix of the recipe's assets.
    """

    @dg.sensor(
        name="_".join([*prefix, "dead_runs"]),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs whose process was killed as failed, and ends what they left running.",
    )
    def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        done = clean_up(context.instance, home(), runs())
        return dg.SkipReason(" ".join(done) or "every unfinished run is alive, and nothing was left running")

    return dead_runs


def _new_refusals(
    context: dg.SensorEvaluationContext,
    gates: Sequence[dg.AssetCheckKey],
) -> list[dg.AssetCheckEvaluation]:
    """Refusals that are not posted yet, oldest first; the first look finds none.

    The cursor holds for each gate when the last refusal that was posted was evaluated. One time for all gates would not
    do: Dagster's default event log, SQLite, has one database a run and no order across them. Nor would the number of a
    row: a row is planned first and gets its verdict later.
    """
    posted_until = _posted_until(context.cursor)
    if not posted_until:
        context.update_cursor(json.dumps({_FIRST_LOOK: time.time()}))
        return []

    refusals = []
    for gate in gates:
        name = gate.to_user_string()
        history = context.instance.event_log_storage.get_asset_check_execution_history(
            gate, limit=_HISTORY, status={AssetCheckExecutionRecordStatus.FAILED}
        )
        for record in history:
            if record.event is None or record.evaluation is None:
                continue
            if record.event.timestamp > posted_until.get(name, posted_until[_FIRST_LOOK]):
                refusals.append((record.event.timestamp, name, record.evaluation))

    refusals.sort(key=lambda refusal: refusal[:2])
    context.update_cursor(json.dumps(posted_until | {name: timestamp for timestamp, name, _ in refusals}))
    return [evaluation for _, _, evaluation in refusals]


def _posted_until(cursor: str | None) -> dict[str, float]:
    """The times that a cursor holds; none for a cursor of an earlier version, which was a row's number."""
    times = json.loads(cursor) if cursor else {}
    return times if isinstance(times, dict) and _FIRST_LOOK in times else {}
