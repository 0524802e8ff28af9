"""What a run can be configured with: the recipe and its overrides, the store, the launcher, the tracker.

They hold the configuration alone; `pipeline.workspace` opens what it names.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import Field

from pipeline.tracking.tracker import Tracker
from pipeline.workspace import open_tracker


class RecipeResource(dg.ConfigurableResource[Any]):
    """The recipe of this run."""

    name: str = Field(description="Name or path of the recipe.")
    overrides: list[str] = Field(default=[], description="Values for this run only, such as base_model.steps=200.")


class StoreResource(dg.ConfigurableResource[Any]):
    """Where artifacts are kept."""

    root: str = Field(default="", description="A folder or an s3:// URL; empty takes $GATEHOUSE_STORE or its default.")


class LauncherResource(dg.ConfigurableResource[Any]):
    """Where jobs run."""

    name: str = Field(default="", description="Entry of launchers.yaml; empty takes the recipe's.")


class TrackerResource(dg.ConfigurableResource[Any]):
    """Where metrics and lineage are kept."""

    uri: str = Field(
        default="",
        description="Empty takes $MLFLOW_TRACKING_URI or its default. A value that is written "
        "here is shown on Dagster's pages, so a password belongs in the variable.",
    )
    dagster_url: str = ""
    mlflow_url: str = ""

    def open(self, recipe: str) -> Tracker:
        """The tracker of one recipe's experiment; raises as `open_tracker` does."""
        return open_tracker(recipe, self.uri, self.dagster_url, self.mlflow_url)
