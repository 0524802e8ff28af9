"""What is worked with for one recipe: its store, its launcher, its tracker and its folders, each opened once.

Commands, Dagster runs and benchmarks all start here. Nothing is opened before it is asked for, and the builder and the
tracker are imported only then: `gatehouse status` waits for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.paths import dagster_url, home, mlflow_url, store_root, tracking_uri
from pipeline.recipes.loader import LoadedRecipe, load_recipe
from training.errors import UserError
from training.store.store import Store

if TYPE_CHECKING:
    from pipeline.building.builder import Builder
    from pipeline.jobs.launcher import Launcher
    from pipeline.tracking.tracker import Tracker


def open_store(recipe: str, root: str = "", folder: Path | None = None, named: str = "") -> Store:
    """The store of a recipe's artifacts.

    Args:
        recipe: Its name.
        root: A folder or an s3:// URL; empty takes `$GATEHOUSE_STORE` or its default.
        folder: The folder of all state, for copies of remote versions; `$GATEHOUSE_HOME` by default.
        named: How the person named the recipe, for the commands in messages; by default its name.
    """
    return Store(root or store_root(), recipe, cache=(folder or home()) / "cache", named=named)


def open_tracker(
    recipe: str, uri: str = "", dagster: str | None = None, mlflow: str | None = None, patience: float | None = None
) -> Tracker:
    """The tracker of a recipe's experiment.

    Args:
        recipe: Its name.
        uri: Where MLflow keeps its records; empty takes `$MLFLOW_TRACKING_URI` or its default.
        dagster: Address of Dagster's pages, for links; empty for none, by default where `gatehouse up` serves them.
        mlflow: Address of MLflow's pages, likewise.
        patience: Seconds after which one step is given up on a slow server; the connection's own by default.

    Raises:
        UserError: MLflow is on PostgreSQL, and its driver is not installed.
    """
    from pipeline.tracking.connection import PATIENCE
    from pipeline.tracking.tracker import Tracker

    uri = uri or tracking_uri()
    if uri.startswith("postgresql") and find_spec("psycopg2") is None:
        raise UserError(
            "MLFLOW_TRACKING_URI names a PostgreSQL database, and its driver is not installed: "
            "pip install -c constraints.txt -e '.[postgres]'"
        )

    dagster = dagster_url() if dagster is None else dagster
    mlflow = mlflow_url() if mlflow is None else mlflow
    return Tracker(uri, recipe, dagster or None, mlflow or None, PATIENCE if patience is None else patience)


class Workspace:
    """One recipe, with everything that is worked with.

    Args:
        recipe: Name or path.
        overrides: Values for this time only, such as `base_model.steps=200`.
        launcher: Entry of launchers.yaml; empty takes the recipe's.
        store: Root of the store; empty takes `$GATEHOUSE_STORE` or its default.
        tracker: Opens the tracker of a recipe by its name.
        folder: The folder of all state, which then holds the store too; `$GATEHOUSE_HOME` by default.
    """

    def __init__(
        self,
        recipe: str,
        overrides: Sequence[str] = (),
        *,
        launcher: str = "",
        store: str = "",
        tracker: Callable[[str], Tracker] = open_tracker,
        folder: Path | None = None,
    ) -> None:
        self._recipe = recipe
        self._overrides = overrides
        self._launcher = launcher
        self._store_root = store or (str(folder / "store") if folder else "")
        self._open_tracker = tracker
        self.home = folder or home()
        self.work = self.home / "work"

    def moved_to(self, folder: Path, tracker: Callable[[str], Tracker] = open_tracker) -> Workspace:
        """The same recipe and launcher with all state in another folder."""
        return Workspace(self._recipe, self._overrides, launcher=self._launcher, tracker=tracker, folder=folder)

    @cached_property
    def loaded(self) -> LoadedRecipe:
        """The recipe, with the overrides applied.

        Raises:
            RecipeError: It is wrong; every mistake is a line of the message.
        """
        return load_recipe(self._recipe, self._overrides)

    @property
    def name(self) -> str:
        """The recipe's own name, which its store and its experiment carry."""
        return self.loaded.recipe.name

    @cached_property
    def store(self) -> Store:
        """The recipe's artifacts."""
        return open_store(self.name, self._store_root, self.home, self._recipe)

    @cached_property
    def launcher(self) -> Launcher:
        """Where its jobs run.

        Raises:
            RecipeError: launchers.yaml has no such entry.
        """
        from pipeline.jobs.launcher import launcher_entry, open_launcher

        return open_launcher(launcher_entry(self.loaded, self._launcher))

    @cached_property
    def tracker(self) -> Tracker:
        """Its experiment in MLflow.

        Raises:
            UserError: MLflow is on PostgreSQL, and its driver is not installed.
        """
        return self._open_tracker(self.name)

    def builder(
        self, owner: str, labels: Mapping[str, str] | None = None, still_wanted: Callable[[], None] = lambda: None
    ) -> Builder:
        """Builds and judges the recipe's assets.

        Args:
            owner: Who builds, for locks and certificates: `run <id>`, or a person.
            labels: Recorded in manifests, never hashed.
            still_wanted: Called while a job runs; raises when it is to end.
        """
        from pipeline.building.builder import Builder

        return Builder(
            loaded=self.loaded,
            store=self.store,
            launcher=self.launcher,
            tracker=self.tracker,
            work=self.work,
            owner=owner,
            labels=dict(labels or {}),
            still_wanted=still_wanted,
        )
