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
from pipeline.graph import GRAPH
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
        description="Starts the chain when a source file of the corpus is added, changed or removed, and two "
        "looks have seen the same.",
    )
    def sources_changed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            state = source_state(loaded.recipe.sources, ROOT)
        except SourceError as error:
            return dg.SkipReason(str(error))

        if context.cursor is None:
            context.update_cursor(str(_Looks(state)))
            return dg.SkipReason("First look at the source files; a change from now on starts the chain.")

        looks = _Looks.parse(context.cursor)
        if state == looks.started:
            context.update_cursor(str(_Looks(state)))
            return dg.SkipReason("The source files are as they were.")
        if state != looks.seen:
            context.update_cursor(str(_Looks(looks.started, state, f"{time.time():.3f}")))
            return dg.SkipReason("The source files have changed; the chain starts when the next look sees the same.")
        # The same files may come and go: a key of their state alone would start the chain for them only once.
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{state} seen at {looks.since}")], cursor=str(_Looks(state))
        )

    return sources_changed


@dataclass(frozen=True)
class _Looks:
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
    def parse(cls, cursor: str) -> _Looks:
        """Read a cursor."""
        return cls(*cursor.split(" ")[:3])


def alert_sensors(loaded: LoadedRecipe, prefix: list[str]) -> list[dg.SensorDefinition]:
    """Sensors that post failed runs and refused artifacts to `$GATEHOUSE_WEBHOOK_URL`; without one they do nothing.

    Args:
        loaded: The recipe whose assets they watch.
        prefix: Key prefix of its assets.
    """
    recipe = loaded.recipe.name
    gates = [
        dg.AssetCheckKey(dg.AssetKey([*prefix, asset]), gate.metric)
        for asset in GRAPH
        for gate in loaded.recipe.gates[asset]
    ]

    @dg.run_failure_sensor(
        name="_".join([*prefix, "run_failed"]),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Posts failed runs to ${WEBHOOK}.",
    )
    def run_failed(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        url = os.environ.get(WEBHOOK)
        if not url:
            return dg.SkipReason(f"{WEBHOOK} is not set")
        steps = [event.step_key for event in context.get_step_failure_events() if event.step_key]
        post(
            url,
            {
                "event": "run_failed",
                "recipe": recipe,
                "run_id": context.dagster_run.run_id,
                "steps": steps,
                "message": context.failure_event.message or "",
            },
        )
        return None

    @dg.sensor(
        name="_".join([*prefix, "gate_refused"]),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Posts artifacts that a gate refused to ${WEBHOOK}.",
    )
    def gate_refused(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        url = os.environ.get(WEBHOOK)
        if not url:
            context.update_cursor(None)
            return dg.SkipReason(f"{WEBHOOK} is not set")
        refused = _new_refusals(context, gates)
        for verdict in refused:
            post(
                url,
                {
                    "event": "gate_refused",
                    "recipe": recipe,
                    "asset": verdict.asset_key.to_user_string(),
                    "gate": verdict.check_name,
                    "reason": verdict.description or "",
                },
            )
        return dg.SkipReason(f"{len(refused)} refusals posted")

    return [run_failed, gate_refused]


def dead_runs_sensor(prefix: list[str]) -> dg.SensorDefinition:
    """Marks runs as failed whose process is gone, and ends what they left running, so that nothing waits for them.

    Args:
        prefix: Key prefix of the recipe's assets.
    """

    @dg.sensor(
        name="_".join([*prefix, "dead_runs"]),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs as failed whose process was killed, and ends what they left running.",
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

    Dagster's default event log, SQLite, has one database a run and no order across them, so each gate has a mark of its
    own: when its last refusal that was posted was evaluated. A row of the history is planned first and gets its verdict
    later, so the row's number is no such mark.
    """
    marks = _marks(context.cursor)
    if not marks:
        context.update_cursor(json.dumps({_FIRST_LOOK: time.time()}))
        return []

    found = []
    for gate in gates:
        name = gate.to_user_string()
        history = context.instance.event_log_storage.get_asset_check_execution_history(
            gate, limit=_HISTORY, status={AssetCheckExecutionRecordStatus.FAILED}
        )
        for record in history:
            if record.event is None or record.evaluation is None:
                continue
            if record.event.timestamp > marks.get(name, marks[_FIRST_LOOK]):
                found.append((record.event.timestamp, name, record.evaluation))

    found.sort(key=lambda one: one[:2])
    context.update_cursor(json.dumps(marks | {name: timestamp for timestamp, name, _ in found}))
    return [evaluation for _, _, evaluation in found]


def _marks(cursor: str | None) -> dict[str, float]:
    """The marks that a cursor holds; none for a cursor of an earlier version, which was a row's number."""
    marks = json.loads(cursor) if cursor else {}
    return marks if isinstance(marks, dict) and _FIRST_LOOK in marks else {}
