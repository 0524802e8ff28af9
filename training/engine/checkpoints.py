"""Checkpoints of a training job: published like artifacts, so that a reader sees a whole one or none.

::

    checkpoints/step-00000050/...             what DeepSpeed and the Trainer wrote
    checkpoints/step-00000050/manifest.json   SHA-256 of every file, written last, before the folder gets its name

DeepSpeed and torch load pickles, so nothing is loaded that the manifest does not vouch for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from training.records import dump
from training.specs.artifacts import FileEntry
from training.specs.base import Spec
from training.storage import fsync, write_durably
from training.store import file_entry

_MANIFEST = "manifest.json"
_PREFIX = "step-"


class CheckpointManifest(Spec):
    """Written last; without it a checkpoint does not exist.

    Attributes:
        layout: What must be the same for the states to be loadable: ranks, ZeRO stage, precision.
    """

    identity: str
    step: int
    layout: dict[str, int | str]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    step: int


class CheckpointFolder:
    """The checkpoints of one job.

    Args:
        root: Folder that holds them; every rank must see it.
        identity: Identity of the artifact in the making: another job's checkpoints are refused.
        layout: Compared on resume.
        keep: How many are kept.
        log: Told why a checkpoint was skipped.
    """

    def __init__(self, root: Path, identity: str, layout: dict[str, int | str], keep: int,
                 log: Callable[[str], None]) -> None:
        self._root = root
        self._identity = identity
        self._layout = layout
        self._keep = keep
        self._log = log

    def staging(self, step: int) -> Path:
        """The hidden folder that all ranks write a checkpoint into."""
        return self._root / f".{_PREFIX}{step:08d}.partial"

    def clear_staging(self) -> None:
        """Remove what killed jobs left half-written; call it on rank 0 before a checkpoint is written."""
        for leftover in self._root.glob(f".{_PREFIX}*.partial"):
            shutil.rmtree(leftover)

    def publish(self, step: int) -> Path:
        """Make the staged folder a checkpoint and prune old ones. Rank 0 calls it once all ranks have written."""
        staged = self.staging(step)
        files = {name: file_entry(staged / name) for name in _files(staged)}
        for name in files:
            fsync(staged / name)
        manifest = CheckpointManifest(identity=self._identity, step=step, layout=self._layout, files=files)
        write_durably(staged / _MANIFEST, dump(manifest))
        for folder in {staged, *((staged / name).parent for name in files)}:
            fsync(folder)
        target = self._root / f"{_PREFIX}{step:08d}"
        if target.exists():  # a damaged one that a resume skipped
            shutil.rmtree(target)
        staged.rename(target)
        fsync(self._root)
        for old in self._folders()[self._keep:]:
            shutil.rmtree(old)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose every byte is as it was published, or None. Skipped ones are logged."""
        for folder in self._folders():
            reason, step = self._verify(folder)
            if reason is None:
                return Checkpoint(folder, step)
            self._log(f"checkpoint {folder.name} is skipped: {reason}")
        return None

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted((path for path in self._root.glob(f"{_PREFIX}*") if path.is_dir()), reverse=True)

    def _verify(self, folder: Path) -> tuple[str | None, int]:
        """Why a checkpoint must not be loaded (None when it may), and its step."""
        try:
            manifest = CheckpointManifest.model_validate_json((folder / _MANIFEST).read_bytes())
        except FileNotFoundError:
            return f"it has no {_MANIFEST}", -1
        except ValidationError as error:
            return f"its {_MANIFEST} is damaged ({error.errors()[0]['msg']})", -1
        if manifest.identity != self._identity:
            return f"it belongs to identity {manifest.identity[:12]}, not {self._identity[:12]}", -1
        if manifest.layout != self._layout:
            changed = [f"{key} {manifest.layout.get(key)} became {value}" for key, value in self._layout.items()
                       if manifest.layout.get(key) != value]
            return f"it was written under another layout ({', '.join(changed)})", -1
        if set(_files(folder)) != set(manifest.files):
            return "a file is missing or was added", -1
        for name, entry in manifest.files.items():
            path = folder / name
            if file_entry(path) != entry:
                return f"the file {name} is not as it was written", -1
        return None, manifest.step


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file() and path.relative_to(folder).as_posix() != _MANIFEST)
