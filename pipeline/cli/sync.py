"""`gatehouse sync`: MLflow gets everything that it lacks, at once and with patience."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer
from rich.console import Console

from pipeline.cli.console import make_console
from pipeline.cli.options import new_app
from pipeline.graph import stored_assets
from pipeline.paths import work
from pipeline.recipes.loader import load_recipe
from pipeline.tracking.delivery import Delivery, deliver_pending, requeue_missing
from pipeline.tracking.promotions import agree_with_mlflow, publish_late, record_judgement
from pipeline.tracking.tracker import Tracker
from pipeline.workspace import open_store, open_tracker
from training.errors import EXIT_FAULT, EXIT_OK
from training.store.store import Store

_PATIENCE = 600.0
_BUDGET = 24 * 3600.0

app = new_app()


@app.command()
def sync(
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", "-r", envvar="GATEHOUSE_RECIPE", help="One recipe; all that were run here by default."
        ),
    ] = "",
) -> None:
    """Tell MLflow what it missed while it was down: metrics, runs, lineage, versions, judgements.

    Runs do the same by themselves, as far as a slow server lets them. An MLflow whose database is new gets everything.
    Nothing is recorded twice.

    Exit codes: 0 MLflow has everything, 1 something is still to be delivered.
    """
    console = make_console()
    logging.getLogger("gatehouse").addHandler(logging.StreamHandler())
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

    # The file of a recipe that was run here may be gone: its folder of attempts is enough.
    names = (
        [load_recipe(recipe).recipe.name] if recipe else sorted(path.name for path in work().iterdir() if path.is_dir())
    )
    complete = [_sync(name, console) for name in names]
    if not names:
        console.print("Nothing was ever built here.", highlight=False)
    raise typer.Exit(EXIT_OK if all(complete) else EXIT_FAULT)


def _sync(recipe: str, console: Console) -> bool:
    """Deliver what MLflow lacks of one recipe, and say so; return whether it has everything now."""
    store, tracker = open_store(recipe), open_tracker(recipe, patience=_PATIENCE)
    with console.status(f"{recipe}: asking MLflow what it has ..."):
        runs = tracker.runs()
    if runs is None:
        console.print(f"{recipe}: MLflow does not answer.", highlight=False)
        return False

    if missing := requeue_missing(work(), store, tracker, runs):
        console.print(f"{recipe}: MLflow lacks {missing} builds that it once had.", highlight=False)

    with console.status(f"{recipe}: delivering ...") as status:
        builds = deliver_pending(
            work(), store, tracker, _BUDGET, lambda name: status.update(f"{recipe}: {name} is delivered")
        )
        versions = _record_versions(store, tracker)

    delivered = {*builds.delivered, *versions.delivered}
    pending = dict.fromkeys([*builds.pending, *versions.pending])
    parts = [f"{len(delivered)} builds and versions delivered"] if delivered else []
    parts += [f"still to be delivered: {', '.join(pending)}"] if pending else []
    console.print(f"{recipe}: {', '.join(parts) or 'MLflow had everything'}.", highlight=False)
    return not pending


def _record_versions(store: Store, tracker: Tracker) -> Delivery:
    """Record the judgements, and the versions whose attempts are gone, oldest first."""
    delivery, assets = Delivery(), stored_assets(store)
    # A version's name begins with its time. The oldest come first, because a model's page links to its parent's.
    versions = [(version, place, asset) for place, asset in enumerate(assets) for version in store.versions(asset)]
    for version, _, asset in sorted(versions):
        manifest, links_before = store.manifest(asset, version), store.links(asset, version)
        if not publish_late(manifest, store, tracker) or not record_judgement(manifest, store, tracker):
            delivery.pending.append(f"{asset} {version}")
        elif store.links(asset, version) != links_before:
            delivery.delivered.append(f"{asset} {version}")

    for asset in assets:
        if store.latest(asset) is not None and not agree_with_mlflow(asset, store, tracker):
            delivery.pending.append(f"which {asset} is promoted")
    return delivery
