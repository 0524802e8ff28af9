"""MLflow and Dagster made to agree with the store, before a command works with them and after it has changed it."""

from __future__ import annotations

import dagster as dg
from rich.console import Console

from pipeline.definitions import key_prefix
from pipeline.defs.sync import reconcile
from pipeline.tracking.delivery import deliver_pending
from pipeline.workspace import Workspace


def repair(workspace: Workspace, instance: dg.DagsterInstance, console: Console) -> None:
    """Make MLflow and Dagster agree with the store, and say where they did not, as after a crash or an outage."""
    if delivered := deliver_pending(workspace.work, workspace.store, workspace.tracker).delivered:
        console.print(f"MLflow has now what it had missed: {', '.join(delivered)}.", highlight=False)

    if repaired := show_promotions(workspace, instance):
        console.print(
            f"Repaired: MLflow and Dagster show again what is promoted of {', '.join(repaired)}.", highlight=False
        )


def show_promotions(workspace: Workspace, instance: dg.DagsterInstance) -> list[str]:
    """Make MLflow and Dagster show what is promoted; return the assets of which they did not."""
    loaded = workspace.loaded
    return reconcile(workspace.store, workspace.tracker, instance, loaded.graph, key_prefix(loaded), workspace.work)
