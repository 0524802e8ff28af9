"""What the commands by which a person decides share: who decides, what happens before, and what is shown after."""

from __future__ import annotations

import getpass
from typing import Any

import dagster as dg
from rich.console import Console

from pipeline.building.builder import Builder
from pipeline.cli.console import make_console
from pipeline.cli.repair import repair, show_promotions
from pipeline.defs.dead_runs import clean_up
from pipeline.defs.instance import open_instance
from pipeline.graph import require_asset
from pipeline.paths import home, runs
from pipeline.workspace import Workspace
from training.errors import RecipeError
from training.specs.artifacts import Certificate


class Decision:
    """A person's decision about the versions of an asset.

    Args:
        recipe: Name or path.
        asset: Whose versions.
        author: Who decides; empty takes the login name.

    Attributes:
        builder: Judges again what was judged on other terms.
        promoted_before: The version that was promoted before; empty where there was none.

    Raises:
        RecipeError: There is no such asset, the recipe is wrong, or the login name is not known.
    """

    def __init__(self, recipe: str, asset: str, author: str) -> None:
        self._workspace = Workspace(recipe)
        require_asset(asset, self._workspace.loaded.graph)
        self.console: Console = make_console()
        self.author = author or login()
        self.builder: Builder = self._workspace.builder(self.author)

        self._instance = tidy(self._workspace, self.console)

        pointer = self.builder.store.promotion(asset)
        self.promoted_before = pointer.version if pointer else ""

    def publish(self) -> None:
        """Make MLflow and Dagster show what is promoted now."""
        show_promotions(self._workspace, self._instance)

    def show_promoted(self, certificate: Certificate) -> None:
        """Publish the decision, and say what is promoted in place of what."""
        self.publish()
        asset, version = certificate.asset, certificate.version
        left = self.promoted_before if self.promoted_before != version else ""
        instead = f", in place of {left}" if left else ""
        self.console.print(f"{asset} {version} is promoted{instead}.", highlight=False)

        store = self.builder.store
        if left and store.hold(asset, left):
            self.console.print(
                f"{left} is held back: no run promotes it again until `gatehouse promote "
                f"-r {store.named} {asset} {left}`.",
                highlight=False,
            )


def tidy(workspace: Workspace, console: Console) -> dg.DagsterInstance:
    """End what a killed run left, and make MLflow and Dagster agree with the store; return Dagster's instance.

    A run that was killed must not stand in the way of a decision, and what is shown afterwards builds on what is shown
    now.
    """
    instance = open_instance()
    for line in clean_up(instance, home(), runs()):
        console.print(line, highlight=False)
    repair(workspace, instance, console)
    return instance


def show_events(events: list[dict[str, Any]]) -> None:
    """Show the phases and warnings of an evaluation that has to run."""
    for event in events:
        if event["kind"] == "phase":
            print(f"  {event['name']}", flush=True)
        elif event["kind"] == "log" and event["level"] != "info":
            print(f"  {event['message']}", flush=True)


def login() -> str:
    """The login name of whoever decides; raises RecipeError."""
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise RecipeError("the login name is not known: give --author") from error
