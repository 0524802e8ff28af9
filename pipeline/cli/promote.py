"""`gatehouse promote` and `gatehouse rollback`: which certified version downstream reads."""

from __future__ import annotations

import getpass
from typing import Any

from rich.console import Console

from pipeline.building import decisions
from pipeline.building.builder import Builder
from pipeline.cli.console import make_console
from pipeline.definitions import key_prefix, tracker_resource
from pipeline.defs.dead_runs import clean_up
from pipeline.defs.instance import open_instance
from pipeline.defs.resources import LauncherResource
from pipeline.defs.sync import reconcile
from pipeline.graph import require_asset
from pipeline.paths import home, runs, store_root, work
from pipeline.recipes.loader import LoadedRecipe, load_recipe
from pipeline.tracking.delivery import deliver_pending
from training.errors import RecipeError
from training.specs.artifacts import Certificate
from training.store.store import Store


def promote(recipe: str, asset: str, version: str, author: str) -> None:
    """Promote a certified version and say so.

    Raises:
        UserError: It may not be promoted; see `pipeline.building.decisions.promote`.
    """
    require_asset(asset)
    desk = Desk(recipe, author)
    desk.repair()
    left = desk.promoted(asset)
    desk.show(decisions.promote(desk.builder, asset, version, desk.author, say), left)


def rollback(recipe: str, asset: str, reason: str, author: str) -> None:
    """Go back to the version that was promoted before and say so.

    Raises:
        UserError: There is none; see `pipeline.building.decisions.rollback`.
    """
    require_asset(asset)
    desk = Desk(recipe, author)
    desk.repair()
    left = desk.promoted(asset)
    desk.show(decisions.rollback(desk.builder, asset, reason, desk.author, say), left)


class Desk:
    """Where a person decides about a recipe's versions, from the command line.

    Args:
        author: Who decides; empty takes the login name.

    Raises:
        RecipeError: The recipe is wrong, or the login name is not known.
    """

    def __init__(self, recipe: str, author: str) -> None:
        self.console = make_console()
        self.author = author or _login()
        self.loaded: LoadedRecipe = load_recipe(recipe)
        name = self.loaded.recipe.name
        self.builder = Builder(
            loaded=self.loaded,
            store=Store(store_root(), name, cache=home() / "cache"),
            launcher=LauncherResource().choose(self.loaded),
            tracker=tracker_resource().tracker(name),
            work=work(),
            owner=self.author,
            labels={},
        )

    def repair(self) -> None:
        """Make MLflow and Dagster agree with the store, before a decision; a dead run must not stand in the way."""
        for line in clean_up(open_instance(), home(), runs()):
            self.console.print(line, highlight=False)
        repair(self.loaded, self.builder.store, self.console)

    def tell(self) -> None:
        """Tell MLflow and Dagster of a decision."""
        _reconcile(self.loaded, self.builder.store)

    def promoted(self, asset: str) -> str:
        """The promoted version of an asset, empty when there is none."""
        pointer = self.builder.store.promotion(asset)
        return pointer.version if pointer else ""

    def show(self, certificate: Certificate, left: str) -> None:
        """Tell MLflow and Dagster what is promoted now, and say so."""
        self.tell()
        asset, version = certificate.asset, certificate.version
        instead = f", in place of {left}" if left and left != version else ""
        self.console.print(f"{asset} {version} is promoted{instead}.", highlight=False)
        if left and left != version and self.builder.store.hold(asset, left):
            self.console.print(
                f"{left} is held back: no run promotes it again until `gatehouse promote "
                f"-r {self.builder.store.recipe} {asset} {left}`.",
                highlight=False,
            )


def repair(loaded: LoadedRecipe, store: Store, console: Console) -> None:
    """Make MLflow and Dagster agree with the store, and say where they did not, as after a crash or an outage."""
    if delivered := deliver_pending(work(), store, tracker_resource().tracker(loaded.recipe.name)).delivered:
        console.print(f"MLflow has now what it had missed: {', '.join(delivered)}.", highlight=False)
    if repaired := _reconcile(loaded, store):
        console.print(
            f"Repaired: MLflow and Dagster show again what is promoted of {', '.join(repaired)}.", highlight=False
        )


def say(events: list[dict[str, Any]]) -> None:
    """Show the phases and warnings of an evaluation that has to run."""
    for event in events:
        if event["kind"] == "phase":
            print(f"  {event['name']}", flush=True)
        elif event["kind"] == "log" and event["level"] != "info":
            print(f"  {event['message']}", flush=True)


def _reconcile(loaded: LoadedRecipe, store: Store) -> list[str]:
    tracker = tracker_resource().tracker(loaded.recipe.name)
    return reconcile(store, tracker, open_instance(), key_prefix(loaded), work())


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise RecipeError("the login name is not known: give --author") from error
