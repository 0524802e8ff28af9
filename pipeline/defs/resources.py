"""What a run can be configured with: the recipe and its overrides, the store, the launcher."""

from __future__ import annotations

import dagster as dg
from pydantic import Field

from pipeline.jobs.launcher import Launcher, launcher_entry, open_launcher
from pipeline.paths import home, store_root
from pipeline.recipes.loader import LoadedRecipe, load_recipe
from training.store.store import Store


class RecipeResource(dg.ConfigurableResource[LoadedRecipe]):
    """The recipe of this run."""

    name: str = Field(description="Name or path of the recipe.")
    overrides: list[str] = Field(default=[], description="Values for this run only, such as base_model.steps=200.")

    def load(self) -> LoadedRecipe:
        """The recipe with the overrides applied; raises RecipeError."""
        return load_recipe(self.name, self.overrides)


class StoreResource(dg.ConfigurableResource[Store]):
    """Where artifacts are kept."""

    root: str = Field(default="", description="A folder or an s3:// URL; empty takes $GATEHOUSE_STORE or its default.")

    def open(self, recipe: str) -> Store:
        """The store of one recipe's artifacts."""
        return Store(self.root or store_root(), recipe, cache=home() / "cache")


class LauncherResource(dg.ConfigurableResource[Launcher]):
    """Where jobs run."""

    name: str = Field(default="", description="Entry of launchers.yaml; empty takes the recipe's.")

    def choose(self, loaded: LoadedRecipe) -> Launcher:
        """The launcher of this run.

        Raises:
            RecipeError: launchers.yaml has no such entry.
        """
        return open_launcher(launcher_entry(loaded, self.name))
