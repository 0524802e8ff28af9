"""How every stage is an asset: resolve the inputs, launch the job, report what was made."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from pydantic import Field

from pipeline.building.adoption import describe_adoption
from pipeline.building.builder import Builder
from pipeline.building.planner import code_version
from pipeline.defs.metadata import Assessment, assessment_of, materialization_metadata
from pipeline.defs.resources import LauncherResource, RecipeResource, StoreResource, TrackerResource
from pipeline.full_disk import explain_full_disk
from pipeline.gates.promotion import describe_waivers
from pipeline.graph import waits_for
from pipeline.jobs.launcher import JobFailed, Listener
from pipeline.jobs.locks import mark_alive
from pipeline.paths import runs
from pipeline.recipes.loader import LoadedRecipe
from pipeline.workspace import Workspace
from training.errors import EXIT_USER, UserError
from training.specs.artifacts import OVERRIDES, Manifest

GPU_POOL = "gpu"
EXIT_CODE = "exit_code"
_ASKING_SECONDS = 5.0


class StageConfig(dg.Config):
    """Run config of one asset."""

    force: bool = Field(default=False, description="Run the job even when a version with the same identity exists.")


def stage_asset(name: str, loaded: LoadedRecipe, prefix: list[str]) -> dg.AssetsDefinition:
    """The Dagster asset of a stage.

    Args:
        name: Its name in the graph.
        loaded: The recipe.
        prefix: Key prefix; empty for the default recipe.
    """
    kind = loaded.graph[name].kind

    @dg.asset(
        name=name,
        key_prefix=prefix or None,
        deps=[dg.AssetKey([*prefix, upstream]) for upstream in waits_for(name, loaded.graph)],
        description=kind.description,
        group_name=kind.group,
        kinds=set(kind.badges),
        owners=[kind.owner],
        code_version=code_version(name, loaded),
        pool=GPU_POOL if kind.uses_gpu else None,
    )
    def materialize(
        context: dg.AssetExecutionContext,
        config: StageConfig,
        recipe: RecipeResource,
        store: StoreResource,
        launcher: LauncherResource,
        tracker: TrackerResource,
    ) -> dg.MaterializeResult[Any]:
        with clear_errors():
            builder = make_builder(context.instance, context.run_id, recipe, store, launcher, tracker)
            manifest, reused = builder.build(name, log_milestones(context.log), config.force)
        context.log.info(
            f"{name} {manifest.version} {'reused' if reused else 'built'}: digest "
            f"{manifest.digest[:12]}, identity {manifest.identity[:12]}"
        )

        assessment = _assess(builder, manifest, log_milestones(context.log))
        artifacts = builder.store
        page = materialization_metadata(
            manifest,
            artifacts.folder(name, manifest.version),
            assessment,
            reused=reused,
            store_uri=artifacts.uri(name, manifest.version),
            links=artifacts.links(name, manifest.version),
            code=[describe_adoption(adoption) for adoption in artifacts.adoptions(name, manifest.version)],
        )
        if waived := artifacts.inherited_waivers(manifest):
            page["waivers"] = dg.MetadataValue.md("\n".join(f"- {text}" for text in describe_waivers(waived)))

        return dg.MaterializeResult(data_version=dg.DataVersion(manifest.digest), metadata=page)

    return materialize


def _assess(builder: Builder, manifest: Manifest, on_events: Listener) -> Assessment:
    """What the page says of a version's worth.

    A failed evaluation does not fail the build: the gates, which follow, fail by it.
    """
    try:
        judged = builder.measure(manifest, on_events)
    except (UserError, JobFailed) as error:
        return Assessment(problem=str(error))
    return assessment_of(builder.store, judged.manifest, judged.certificate)


def make_builder(
    instance: dg.DagsterInstance,
    run_id: str,
    recipe: RecipeResource,
    store: StoreResource,
    launcher: LauncherResource,
    tracker: TrackerResource,
) -> Builder:
    """The builder of one Dagster run."""
    mark_alive(runs(), run_id)
    workspace = Workspace(recipe.name, recipe.overrides, launcher=launcher.name, store=store.root, tracker=tracker.open)
    labels = {"dagster_run_id": run_id} | ({OVERRIDES: json.dumps(recipe.overrides)} if recipe.overrides else {})
    return workspace.builder(f"run {run_id[:8]}", labels, end_with_run(instance, run_id))


def end_with_run(instance: dg.DagsterInstance, run_id: str) -> Callable[[], None]:
    """A function that interrupts the step once Dagster says that its run is being cancelled, or is over.

    Dagster's own request reaches a run only through the code server that started it. Without that server the run would
    be shown as cancelled while its training went on.
    """
    asked_at = time.monotonic()

    def check() -> None:
        nonlocal asked_at
        if time.monotonic() - asked_at < _ASKING_SECONDS:
            return

        asked_at = time.monotonic()
        try:
            run = instance.get_run_by_id(run_id)
        except Exception:  # a database that is away for a while must not end a training; it is asked again
            return

        if run is None or run.is_finished or run.status == dg.DagsterRunStatus.CANCELING:
            raise DagsterExecutionInterruptedError

    return check


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn an error with a message of its own into a Dagster failure that shows it and is not retried."""
    try:
        yield
    except (UserError, JobFailed) as error:
        raise dg.Failure(str(error), metadata={EXIT_CODE: error.exit_code}, allow_retries=False) from error
    except Exception as error:
        if full := explain_full_disk(error):
            raise dg.Failure(full, metadata={EXIT_CODE: EXIT_USER}, allow_retries=False) from error
        raise


def log_milestones(log: dg.DagsterLogManager) -> Listener:
    """A listener that writes a handful of lines to Dagster's log: each phase, each quarter of it, each message.

    Every event is kept in the attempt, so Dagster's database need not hold one row for each step.
    """
    quarters_logged = 0

    def write(level: str, line: str) -> None:
        try:
            log.log(level, line)
        except Exception as error:  # a line that Dagster's database cannot take now must not end a training
            logging.getLogger("gatehouse").warning("Dagster's log lacks the line %r: %s", line, error)

    def listen(events: list[dict[str, Any]]) -> None:
        nonlocal quarters_logged
        for event in events:
            if event["kind"] == "phase":
                quarters_logged = 0
                write("INFO", f"phase: {event['name']}")
            elif event["kind"] == "log":
                write(event["level"].upper(), event["message"])
            elif event["kind"] == "link":
                write("INFO", f"{event['name']}: {event['url']}")
            elif event["kind"] == "progress" and event["total"]:
                quarter = int(4 * event["done"] / event["total"])
                if quarter > quarters_logged:
                    quarters_logged = quarter
                    write("INFO", f"{event['done']:g} of {event['total']:g} {event['unit']} {event['note']}".rstrip())

    return listen
