"""`gatehouse status`: what there is of every asset, or all that is known of one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipeline.building.adoption import describe_adoption
from pipeline.cli.console import make_console
from pipeline.cli.options import Recipe, new_app
from pipeline.graph import require_asset
from pipeline.humanize import age, short, size
from pipeline.upkeep.asset_status import NEVER_BUILT, AssetStatus, survey
from pipeline.workspace import Workspace
from training.store.store import Store

_NARROW = ("asset", "version", "state", "gates", "headline", "age")
_WIDE = ("asset", "promoted", "latest", "state", "why", "gates", "headline", "age", "size")
_COLOURS = {"fresh": "green", "stale": "yellow", "refused": "red", "not judged": "yellow", "code changed": "yellow"}
_LOAD = """  from transformers import pipeline
  model = pipeline("text-generation", model="{folder}")
  print(model({prompt})[0]["generated_text"])"""
_QUESTION, _BEGINNING = '[{"role": "user", "content": "What does `os.path.join` do?"}]', '"import os"'

app = new_app()


@app.command("status")
def command(
    asset: Annotated[
        str, typer.Argument(help="One asset, with its files, its links and its lineage; all if left out.")
    ] = "",
    recipe: Recipe = "tiny",
    wide: Annotated[
        bool, typer.Option("--wide", help="Whole version names, sizes, and the reasons in the table.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object an asset.")] = False,
) -> None:
    """Show every asset: version, fresh or stale and why, gates, headline metric, age.

    Examples: `gatehouse status`, `gatehouse status --wide`, `gatehouse status sft_model`.
    """
    if asset:
        show_asset(recipe, asset)
    else:
        show_status(recipe, as_json, wide)


def show_status(recipe: str, as_json: bool, wide: bool = False) -> None:
    """Print the state of every asset as a table that fits 80 columns, or as a JSON list.

    Args:
        wide: Whole version names and the reasons in the table.
    """
    workspace = Workspace(recipe)
    statuses = survey(workspace.loaded, workspace.store)
    if as_json:
        print(json.dumps([status.as_json() for status in statuses], indent=1))
        return

    columns = _WIDE if wide else _NARROW
    table = Table(title=f"recipe {recipe}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")

    for status in statuses:
        cells = _cells(status)
        table.add_row(*(cells[name] for name in columns))

    console = make_console()
    console.print(table)
    if wide:
        return

    for status in statuses:
        if not status.fresh and status.why != NEVER_BUILT:
            console.print(f"[yellow]{status.asset}[/]: {escape(status.why)}", highlight=False, soft_wrap=True)
    if any(_newer(status) for status in statuses):
        console.print("* a newer version exists that is not promoted; --wide shows it", highlight=False)


def show_asset(recipe: str, asset: str) -> None:
    """Print all that is known of one asset: versions, verdict, files, links, what it was made from and what from it.

    Raises:
        RecipeError: There is no such asset.
    """
    workspace = Workspace(recipe)
    require_asset(asset, workspace.loaded.graph)
    store = workspace.store
    statuses = {status.asset: status for status in survey(workspace.loaded, store)}
    status = statuses[asset]

    console = make_console()
    if status.shown is None:
        console.print(store.explain_unpromoted(asset), markup=False, highlight=False, soft_wrap=True)
        return

    for name, text in _details(status, statuses, store):
        console.print(f"[bold]{name:<12}[/]{escape(text)}", highlight=False, soft_wrap=True)
    if workspace.loaded.graph[asset].kind.is_model:
        prompt = _BEGINNING if asset == "base_model" else _QUESTION
        console.print("\nLoad it with transformers:", highlight=False)
        console.print(
            _LOAD.format(folder=f"{status.path}/model", prompt=prompt), markup=False, highlight=False, soft_wrap=True
        )


def _cells(status: AssetStatus) -> dict[str, str]:
    """Column to cell."""
    shown = status.shown
    if shown is None:
        state = NEVER_BUILT if status.why == NEVER_BUILT else "[red]unreadable[/]"
        return {
            **dict.fromkeys((*_NARROW, *_WIDE), "-"),
            "asset": status.asset,
            "state": state,
            "why": escape(status.why),
        }

    verdicts = status.certificate.verdicts if status.certificate else ()
    passed = sum(verdict.passed for verdict in verdicts)
    colour = "green" if verdicts and passed == len(verdicts) else "red"
    state = _state(status)
    return {
        "asset": status.asset,
        "version": short(shown.version) + ("*" if _newer(status) else ""),
        "promoted": shown.version if status.promoted else "-",
        "latest": status.latest.version if status.latest else "-",
        "state": f"[{_COLOURS[state]}]{state}[/]",
        "why": escape(status.why),
        "gates": f"[{colour}]{passed}/{len(verdicts)}[/]",
        "headline": status.headline(),
        "age": age(time.time() - shown.started_at - shown.seconds),
        "size": size(shown.bytes),
    }


def _state(status: AssetStatus) -> str:
    """`fresh`, `code changed`, `stale`, or where nothing is promoted `refused` or `not judged`."""
    if status.fresh:
        return "fresh"
    if status.promoted and status.code_changed and status.is_settled:
        return "code changed"
    if status.promoted:
        return "stale"
    return "refused" if status.certificate else "not judged"


def _newer(status: AssetStatus) -> bool:
    return bool(status.promoted and status.latest and status.shown and status.latest.version != status.shown.version)


def _details(status: AssetStatus, statuses: Mapping[str, AssetStatus], store: Store) -> Iterator[tuple[str, str]]:
    """Name and text of everything that is known of an asset that was built."""
    shown = status.shown
    assert shown is not None
    yield "asset", f"{status.asset} of recipe {store.recipe}"
    yield "version", f"{shown.version} ({'promoted' if status.promoted else 'not promoted'})"
    if _newer(status) and status.latest:
        yield "newest", status.latest.version
    yield "state", _state(status) + (f": {status.why}" if status.why else "")

    if status.certificate:
        verdicts = status.certificate.verdicts
        yield "gates", f"{sum(verdict.passed for verdict in verdicts)} of {len(verdicts)} passed"
    for adoption in status.adoptions:
        yield "adopted", describe_adoption(adoption)
    yield "headline", status.headline()
    yield "files", f"{status.path}, {len(shown.files)} files, {size(shown.bytes)}"
    for name, title in (("mlflow_url", "MLflow"), ("dagster_run_id", "Dagster run")):
        if status.links.get(name):
            yield title, status.links[name]

    for used in shown.inputs.values():
        yield "made from", f"{used.asset} {used.version}"

    # By content: equal bytes that were built again carry another version's name.
    for child in statuses.values():
        if child.shown and any(used.digest == shown.digest for used in child.shown.inputs.values()):
            yield "went into", f"{child.asset} {child.shown.version}"
