"""A copy of a trained store, to do harm in with the real jobs and the real gates."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.building.builder import Builder
from pipeline.building.planner import plan_asset
from pipeline.jobs.launcher import open_launcher, run_job
from pipeline.recipes.loader import LoadedRecipe
from pipeline.tracking.tracker import TrackerResource
from training.specs.artifacts import Certificate, Manifest
from training.specs.execution import Launcher
from training.store.store import MANIFEST, Store


@dataclass(frozen=True)
class World:
    """A store of its own, whose files are links to the original's until something replaces them."""

    folder: Path
    loaded: LoadedRecipe
    launcher: Launcher

    @classmethod
    def of(cls, source: Path, loaded: LoadedRecipe, launcher: Launcher, folder: Path) -> World:
        """A copy of `<source>/<recipe>`; the original is never written to: the store replaces files, and edits none."""
        name = loaded.recipe.name
        shutil.copytree(source / name, folder / "store" / name, copy_function=os.link)
        return cls(folder, loaded, launcher)

    @property
    def store(self) -> Store:
        """The copy."""
        return Store(str(self.folder / "store"), self.loaded.recipe.name)

    @property
    def builder(self) -> Builder:
        """A builder that judges in the copy; nothing of it is tracked."""
        tracker = TrackerResource(uri=f"sqlite:///{self.folder / 'mlflow.db'}", dagster_url="", mlflow_url="")
        return Builder(
            loaded=self.loaded,
            store=self.store,
            launcher=open_launcher(self.launcher),
            tracker=tracker.tracker(self.loaded.recipe.name),
            work=self.folder / "work",
            owner="proof",
            labels={},
        )

    def real(self, asset: str) -> Manifest:
        """The promoted version of an asset."""
        pointer = self.store.promotion(asset)
        assert pointer is not None, f"{asset} is not promoted in {self.folder}"
        return self.store.manifest(asset, pointer.version)

    def files(self, asset: str) -> Path:
        """The promoted version's folder."""
        return self.store.folder(asset, self.real(asset).version)

    def impostor(self, asset: str, edit: Callable[[Path], None]) -> Manifest:
        """Publish a copy of the promoted version with other content under the same provenance."""
        real = self.real(asset)
        draft = self.folder / f"draft-{uuid.uuid4().hex[:8]}"
        shutil.copytree(self.store.folder(asset, real.version), draft)
        (draft / MANIFEST).unlink()
        edit(draft)
        return self.store.publish(draft, real.model_copy(update={"identity": uuid.uuid4().hex * 2}))

    def train(self, asset: str) -> Manifest:
        """Run the asset's real job on what is promoted here."""
        plan = plan_asset(asset, self.loaded, self.store)
        job = plan.job(self.store, self.folder / "work", self.launcher.execution(asset), {})
        run_job(open_launcher(self.launcher), job, lambda events: None, forward_output=False)
        made = self.store.find(asset, plan.identity)
        assert made is not None, f"the job of {asset} published nothing"
        return made

    def judge(self, manifest: Manifest) -> Certificate:
        """The certificate of a version; it is promoted if its gates let it pass."""
        return self.builder.examine(manifest, lambda events: None, past=False).certificate
