"""One run of the graph through Dagster, in this process, and the exit code that it ends with."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from rich.console import Console

from pipeline.cli.console import RunDisplay, make_console
from pipeline.cli.repair import repair
from pipeline.cli.run import selected
from pipeline.cli.summary import show_summary
from pipeline.definitions import build_definitions, key_prefix
from pipeline.defs.assets import EXIT_CODE
from pipeline.defs.code_location import NO_RETRY, in_code_location
from pipeline.defs.dead_runs import clean_up
from pipeline.defs.instance import open_instance
from pipeline.defs.sync import agree_with_dagster
from pipeline.jobs.locks import mark_alive
from pipeline.jobs.progress import displayed
from pipeline.paths import home, runs
from pipeline.workspace import Workspace
from training.errors import EXIT_FAULT, EXIT_OK

INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """What a run is asked to do.

    Attributes:
        recipe: Name or path, as the person wrote it.
        launcher: Entry of launchers.yaml; empty takes the recipe's.
        force: Run the jobs even when nothing has changed.
    """

    recipe: str
    overrides: tuple[str, ...]
    launcher: str
    force: bool


def materialize(request: Request, select: Sequence[str]) -> int:
    """Materialize a selection of the recipe's graph, show what came of it, and return the exit code.

    0 everything selected is promoted; 1 a fault, or a gate refused; 2 a person's mistake; 130 interrupted.
    """
    # A mistake in the options is found before anything is touched.
    workspace = Workspace(request.recipe, request.overrides, launcher=request.launcher)
    loaded, _ = workspace.loaded, workspace.launcher
    assets = selected(select, loaded.graph)

    console = make_console()
    instance = open_instance()
    for line in clean_up(instance, home(), runs()):
        console.print(line, highlight=False)
    repair(workspace, instance, console)

    started = time.monotonic()
    logging.getLogger("gatehouse").addHandler(logging.StreamHandler())
    with RunDisplay(console) as display, displayed(display):
        try:
            result = _execute(request, workspace.name, instance, assets, key_prefix(loaded))
            interrupted = _is_interrupted(result)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            interrupted = True
        if interrupted:
            console.print("Interrupted. Nothing that was published is lost; the same command goes on where it stopped.")
            return INTERRUPTED

    code = _show_failures(result, console, key_prefix(loaded))
    # Another run that was refused meanwhile may have planned the same checks, which hide this run's verdicts.
    agree_with_dagster(workspace.store, instance, loaded.graph, key_prefix(loaded), workspace.work)
    took = f"{time.monotonic() - started:.1f} s in all; run {result.run_id}"
    show_summary(request.recipe, workspace, display, took, code != EXIT_OK, console)
    return code


def _execute(
    request: Request, location: str, instance: dg.DagsterInstance, assets: Sequence[str], prefix: list[str]
) -> dg.ExecuteInProcessResult:
    """Run the assets' jobs and gates.

    Args:
        location: The code location that `gatehouse up` shows the run under.
        prefix: Key prefix of the recipe's assets.
    """
    job = build_definitions(request.recipe, request.overrides).resolve_implicit_global_asset_job_def()
    # Dagster's own log would tear the progress bars apart; what went wrong is shown at the end.
    config: dict[str, Any] = {
        "resources": {
            "recipe": {"config": {"name": request.recipe, "overrides": list(request.overrides)}},
            "launcher": {"config": {"name": request.launcher}},
        },
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    if request.force:
        config["ops"] = {"__".join([*prefix, asset]): {"config": {"force": True}} for asset in assets}

    # The lock comes before Dagster shows the run as started: killed in between, it would be shown so for ever.
    run_id = str(uuid.uuid4())
    mark_alive(runs(), run_id)
    with in_code_location(instance, location, job.name):
        return job.execute_in_process(
            run_config=config,
            instance=instance,
            raise_on_error=False,
            run_id=run_id,
            asset_selection=[dg.AssetKey([*prefix, asset]) for asset in assets],
            tags=NO_RETRY,
        )


def _is_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether a signal, or a cancellation in the browser, ended a step."""
    return any(
        event.is_step_failure
        and event.step_failure_data.error is not None
        and event.step_failure_data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__
        for event in result.all_events
    )


def _show_failures(result: dg.ExecuteInProcessResult, console: Console, prefix: list[str]) -> int:
    """Print what went wrong, each thing once; return the exit code."""
    code = EXIT_OK

    def show(message: str, exit_code: int) -> None:
        nonlocal code
        code = max(code, exit_code)
        console.print(message, markup=False, highlight=False, style="red", soft_wrap=True)

    for event in result.all_events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            verdict = event.asset_check_evaluation_data
            if not verdict.passed:
                show(f"{verdict.asset_key.path[-1]}: {verdict.description}", EXIT_FAULT)
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            step = str(event.step_key).removeprefix("_".join([*prefix, ""])).removeprefix("_")
            failure = data.user_failure_data
            if failure is not None:
                exit_code = failure.metadata.get(EXIT_CODE)
                show(f"{step}: {failure.description}", EXIT_FAULT if exit_code is None else int(str(exit_code.value)))
            # The refusal that stopped a step was shown with its check.
            elif data.error is None or data.error.cls_name != "DagsterAssetCheckFailedError":
                show(f"{step} failed:\n{data.error_display_string}", EXIT_FAULT)
    return code
