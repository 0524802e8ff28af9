"""A copy of a trained store, to do harm in with the real jobs and the real gates."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.building.planner import plan_asset
from pipeline.jobs.launcher import run_job
from pipeline.recipes.loader import LoadedRecipe
from pipeline.tracking.tracker import Tracker
from pipeline.workspace import Workspace
from training.specs.artifacts import Certificate, Manifest
from training.store.store import MANIFEST, Store


@dataclass(frozen=True)
class World:
    """A store of its own. Its files are links to the original's until something replaces them."""

    workspace: Workspace

    @classmethod
    def of(cls, original: Workspace, folder: Path) -> World:
        """A copy of a recipe's local store; the original stays as it is, because the store never edits a file."""
        name = original.name
        shutil.copytree(Path(original.store.root) / name, folder / "store" / name, copy_function=os.link)

        # Its builds are tracked in a file beside it, which nobody reads.
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        return cls(original.moved_to(folder, tracker=lambda recipe: Tracker(uri, recipe)))

    @property
    def loaded(self) -> LoadedRecipe:
        """The recipe."""
        return self.workspace.loaded

    @property
    def store(self) -> Store:
        """The copy."""
        return self.workspace.store

    def real(self, asset: str) -> Manifest:
        """The promoted version of an asset."""
        pointer = self.store.promotion(asset)
        assert pointer is not None, f"{asset} is not promoted in {self.workspace.home}"
        return self.store.manifest(asset, pointer.version)

    def files(self, asset: str) -> Path:
        """The promoted version's folder."""
        return self.store.folder(asset, self.real(asset).version)

    def impostor(self, asset: str, edit: Callable[[Path], None]) -> Manifest:
        """Publish a copy of the promoted version with other content under the same provenance."""
        real = self.real(asset)
        draft = self.workspace.home / f"draft-{uuid.uuid4().hex[:8]}"
        shutil.copytree(self.store.folder(asset, real.version), draft)
        (draft / MANIFEST).unlink()

        edit(draft)
        return self.store.publish(draft, real.model_copy(update={"identity": uuid.uuid4().hex * 2}))

    def train(self, asset: str) -> Manifest:
        """Run the asset's real job on what is promoted here."""
        launcher = self.workspace.launcher
        plan = plan_asset(asset, self.loaded, self.store)
        job = plan.job(self.store, self.workspace.work, launcher.entry.execution(asset), {})
        run_job(launcher, job, lambda events: None, forward_output=False)

        manifest = self.store.find(asset, plan.identity)
        assert manifest is not None, f"the job of {asset} published nothing"
        return manifest

    def judge(self, manifest: Manifest) -> Certificate:
        """The certificate of a version; it is promoted if its gates let it pass."""
        return self.workspace.builder("proof").examine(manifest, lambda events: None, is_past_version=False).certificate
