"""`gatehouse run`: materialize the graph through Dagster, and show what came out of it."""

from __future__ import annotations

import json
import logging
import textwrap
import time
from typing import Any

import dagster as dg
from dagster._core.utils import make_new_run_id
from rich.console import Console
from rich.table import Table

from pipeline.cli.console import RunDisplay, make_console
from pipeline.cli.next_steps import next_steps
from pipeline.cli.promote import repair
from pipeline.definitions import build_definitions, key_prefix
from pipeline.defs.assets import EXIT_CODE
from pipeline.defs.code_location import NO_RETRY, in_code_location
from pipeline.defs.dead_runs import clean_up
from pipeline.defs.instance import open_instance
from pipeline.defs.resources import LauncherResource
from pipeline.defs.sync import agree_with_dagster
from pipeline.graph import GRAPH, require_asset
from pipeline.jobs.locks import mark_alive
from pipeline.jobs.progress import displayed
from pipeline.paths import ROOT, home, runs, store_root, work
from pipeline.recipes.loader import LoadedRecipe, load_recipe
from pipeline.upkeep.asset_status import headline
from training.data.sources.source_state import describe_source
from training.errors import EXIT_FAULT, EXIT_OK, RecipeError, SourceError
from training.store.store import Store

INTERRUPTED = 130
_QUESTIONS = 3
_CELL = 160


def run(recipe: str, select: list[str], overrides: list[str], launcher: str, force: bool) -> int:
    """Materialize a selection of the recipe's graph; return the exit code.

    0 everything selected is promoted; 1 a fault, or a gate refused; 2 a person's mistake; 130 interrupted. A mistake
    in the options is found before anything is touched.
    """
    loaded = load_recipe(recipe, overrides)
    chosen = _selected(select)
    LauncherResource(name=launcher).choose(loaded)

    console = make_console()
    instance = open_instance()
    for line in clean_up(instance, home(), runs()):
        console.print(line, highlight=False)
    repair(loaded, Store(store_root(), loaded.recipe.name, cache=home() / "cache"), console)
    started = time.monotonic()
    logging.getLogger("gatehouse").addHandler(logging.StreamHandler())
    with RunDisplay(console) as display, displayed(display):
        try:
            result = _execute(recipe, loaded, instance, chosen, overrides, launcher, force)
            interrupted = _interrupted(result)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            interrupted = True
        if interrupted:
            console.print("Interrupted. Nothing that was published is lost; the same command goes on where it stopped.")
            return INTERRUPTED
    code = _failures(result, console, key_prefix(loaded))
    store = Store(store_root(), loaded.recipe.name, cache=home() / "cache")
    agree_with_dagster(store, instance, key_prefix(loaded), work())
    if display.states:
        console.print(_summary(store, display))
    if "raw_corpus" in display.states:
        show_sources(loaded, console)
    console.print(f"{time.monotonic() - started:.1f} s in all; run {result.run_id}", highlight=False)
    if code == EXIT_OK:
        _answers(store, console)
    _next(next_steps(recipe, display.refused, code != EXIT_OK, store), console)
    return code


def _execute(
    recipe: str,
    loaded: LoadedRecipe,
    instance: dg.DagsterInstance,
    chosen: list[str],
    overrides: list[str],
    launcher: str,
    force: bool,
) -> dg.ExecuteInProcessResult:
    definitions = build_definitions(recipe)
    prefix = key_prefix(loaded)
    job = definitions.resolve_implicit_global_asset_job_def()
    config: dict[str, Any] = {
        "resources": {
            "recipe": {"config": {"name": recipe, "overrides": overrides}},
            "launcher": {"config": {"name": launcher}},
        },
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    if force:
        config["ops"] = {"__".join([*prefix, asset]): {"config": {"force": True}} for asset in chosen}
    run_id = make_new_run_id()
    mark_alive(runs(), run_id)  # before Dagster shows it as started: killed in between, it would be shown so for ever
    with in_code_location(instance, loaded.recipe.name, job.name):
        return job.execute_in_process(
            run_config=config,
            instance=instance,
            raise_on_error=False,
            run_id=run_id,
            asset_selection=[dg.AssetKey([*prefix, asset]) for asset in chosen],
            tags=NO_RETRY,
        )


def _selected(select: list[str]) -> list[str]:
    names = [name.strip() for names in select for name in names.split(",")]
    if not names or "*" in names:
        return list(GRAPH)
    for name in names:
        if name.endswith("+"):
            raise RecipeError(f"--select {name}: what is downstream cannot be asked for; +name takes what is upstream")
        require_asset(name.removeprefix("+"), "--select")
    chosen: set[str] = set()
    for name in names:
        chosen |= _upstream(name[1:]) if name.startswith("+") else {name}
    return [asset for asset in GRAPH if asset in chosen]


def _upstream(asset: str) -> set[str]:
    return {asset}.union(*(_upstream(name) for name in GRAPH[asset].inputs))


def _interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether a signal, or a cancellation in the browser, ended a step."""
    return any(
        event.is_step_failure
        and event.step_failure_data.error is not None
        and event.step_failure_data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__
        for event in result.all_events
    )


def _failures(result: dg.ExecuteInProcessResult, console: Console, prefix: list[str]) -> int:
    """Print what went wrong, each thing once; return the exit code."""
    code = EXIT_OK
    for event in result.all_events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            verdict = event.asset_check_evaluation_data
            if not verdict.passed:
                code = max(code, EXIT_FAULT)
                _complain(console, f"{verdict.asset_key.path[-1]}: {verdict.description}")
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            step = str(event.step_key).removeprefix("_".join([*prefix, ""])).removeprefix("_")
            failure = data.user_failure_data
            if failure is not None:
                code = max(code, int(str(failure.metadata[EXIT_CODE].value)) if EXIT_CODE in failure.metadata else 1)
                _complain(console, f"{step}: {failure.description}")
            elif data.error is None or data.error.cls_name != "DagsterAssetCheckFailedError":
                code = max(code, EXIT_FAULT)
                _complain(console, f"{step} failed:\n{data.error_display_string}")
    return code


def _complain(console: Console, message: str) -> None:
    console.print(message, markup=False, highlight=False, style="red", soft_wrap=True)


def _summary(store: Store, display: RunDisplay) -> Table:
    table = Table()
    for name in ("asset", "version", "", "time", "headline", "gates passed"):
        table.add_column(name, justify="right" if name in ("time", "gates passed") else "left", no_wrap=True)
    for asset in (asset for asset in GRAPH if asset in display.states):
        version = display.versions[asset]
        certificate = store.certificate(asset, version)
        verdicts = certificate.verdicts if certificate else ()
        table.add_row(
            asset,
            version,
            display.states[asset],
            f"{display.seconds.get(asset, 0.0):.1f} s",
            headline(store.manifest(asset, version), certificate),
            f"{sum(verdict.passed for verdict in verdicts)}/{len(verdicts)}",
        )
    return table


def show_sources(loaded: LoadedRecipe, console: Console) -> None:
    """Print what was read of each source and what was left out, as `gatehouse recipe check` does."""
    for source in loaded.recipe.sources:
        try:
            line = describe_source(source, ROOT)
        except SourceError as error:  # it went, or changed, since it was read
            line = str(error)
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _answers(store: Store, console: Console) -> None:
    before, after = _samples(store, "base_model"), _samples(store, "lora_model")
    if not before or not after:
        return
    table = Table(title="The same questions, before and after", title_justify="left", show_lines=True)
    for name in ("question", "base model", "final model"):
        table.add_column(name, overflow="fold", ratio=1)
    for prompt in list(after)[:_QUESTIONS]:
        table.add_row(*(shortened(text) for text in (prompt, before.get(prompt, ""), after[prompt])))
    console.print(table)


def _next(steps: list[tuple[str, str]], console: Console) -> None:
    if not steps:
        return
    width = max(len(command) for command, _ in steps)
    console.print("\nNext:", highlight=False)
    for command, purpose in steps:
        console.print(f"  {command:<{width}}  {purpose}", highlight=False, markup=False, soft_wrap=True)


def shortened(text: str) -> str:
    """A text on one line, cut to what a table's cell can show."""
    return textwrap.shorten(text, _CELL, placeholder=" …")


def _samples(store: Store, asset: str) -> dict[str, str]:
    latest = store.latest(f"{asset}.evaluation")
    if latest is None:
        return {}
    path = store.folder(latest.asset, latest.version) / "report" / "samples.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {row["prompt"]: row["answer"] for row in rows}
