"""Checkpoints of a training job: published like artifacts, so that a reader sees a whole one or none.

::

    checkpoints/step-00000050/...             what DeepSpeed and the Trainer wrote
    checkpoints/step-00000050/manifest.json   SHA-256 of every file, written last, before the folder gets its name
    checkpoints/.step-00000050.partial/...    one that is being written

DeepSpeed and torch load pickles, and a pickle can run code. So nothing is loaded that the manifest does not vouch for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from training.errors import StoreError
from training.specs.artifacts import FileEntry
from training.specs.base import Spec
from training.specs.optimization import Checkpoints
from training.store.records import dump
from training.store.storage import fsync, write_durably
from training.store.store import file_entry

_MANIFEST = "manifest.json"
_PREFIX = "step-"
_PROCESSES = "processes"


class CheckpointManifest(Spec):
    """Written last; without it a checkpoint does not exist.

    Attributes:
        identity: Identity of the artifact that the job makes.
        step: Optimizer steps done.
        layout: What must be the same for the states to be loadable: ZeRO stage, precision, device. The number of
            processes may differ; the states are then resharded.
        loss: Mean training loss since the checkpoint before, in nats.
        files: Size and digest of every file, by its path below the folder.
    """

    identity: str
    step: int
    layout: dict[str, int | str]
    loss: float
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        step: Optimizer steps done.
        processes: Number of ranks that wrote it.
    """

    folder: Path
    step: int
    processes: int


class CheckpointFolder:
    """The checkpoints of one job.

    Rank 0 alone publishes, removes and verifies. The other ranks only write into the staging folder.

    Args:
        root: Folder that holds them; every rank must see it.
        identity: Identity of the artifact in the making; checkpoints of another one are refused.
        layout: Compared on resume; `processes` may differ.
        rule: Which are kept.
        log: Called with a line that says why a checkpoint was skipped.
        rollback_steps: Steps that a rollback goes back by; a checkpoint from before them is kept for it. 0 without
            rollbacks.
    """

    def __init__(
        self,
        root: Path,
        identity: str,
        layout: dict[str, int | str],
        rule: Checkpoints,
        log: Callable[[str], None],
        rollback_steps: int = 0,
    ) -> None:
        self._root = root
        self._identity = identity
        self._layout = layout
        self._rule = rule
        self._log = log
        self._rollback_steps = rollback_steps
        # One thread, so that checkpoints are published in the order in which they were written.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._publishing: Future[None] | None = None

    # Writing

    def staging(self, step: int) -> Path:
        """The hidden folder that all ranks write a checkpoint into."""
        return self._root / f".{_PREFIX}{step:08d}.partial"

    def resharded(self, step: int) -> Path:
        """The hidden folder for a checkpoint's states in the form that another number of processes loads."""
        return self._root / f".{_PREFIX}{step:08d}.recut"

    def clear_staging(self) -> None:
        """Remove the states that were resharded for this start, and whatever killed jobs left unfinished.

        Rank 0 calls it before a checkpoint is written.
        """
        self.settle()
        for hidden in self._root.glob(f".{_PREFIX}*"):
            shutil.rmtree(hidden)

    def publish(self, step: int, loss: float) -> None:
        """Begin to make the staged folder a checkpoint and to prune old ones, while training goes on.

        Rank 0 calls it once all ranks have written. `settle` waits for the end.

        Args:
            step: Optimizer steps done.
            loss: Mean training loss since the checkpoint before.
        """
        self._publishing = self._thread.submit(self._publish, step, loss)

    def settle(self) -> None:
        """Wait until the checkpoint that is being published lies on the disk.

        Raises:
            StoreError: It could not be written. Earlier checkpoints are untouched.
        """
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            try:
                publishing.result()
            except OSError as error:
                raise self.unwritten(error) from error

    def unwritten(self, error: Exception) -> StoreError:
        """The error to raise when a checkpoint cannot be written."""
        free = shutil.disk_usage(self._root).free
        reason = getattr(error, "strerror", None) or error
        return StoreError(
            f"no checkpoint could be written to {self._root} ({reason}; {free / 1e6:,.0f} MB are free there): earlier "
            "ones are untouched. Make room and start the job again: it continues from the newest one"
        )

    def _publish(self, step: int, loss: float) -> None:
        staged = self.staging(step)
        files = {name: file_entry(staged / name) for name in _files(staged)}

        # A crash must not leave a folder with its final name and without its content: files first, then the manifest,
        # then the folders' entries, and the name last.
        for name in files:
            fsync(staged / name)
        manifest = CheckpointManifest(identity=self._identity, step=step, layout=self._layout, loss=loss, files=files)
        write_durably(staged / _MANIFEST, dump(manifest))
        for folder in {staged, *((staged / name).parent for name in files)}:
            fsync(folder)

        target = self._root / f"{_PREFIX}{step:08d}"
        if target.exists():  # a damaged one that a resume skipped
            _remove(target)
        staged.rename(target)
        fsync(self._root)

        # Later steps can only be those that a resume refused, such as of another layout. They would crowd out the
        # checkpoints that this job can resume from.
        self._remove_after(step)
        self._prune(self._newest(step))

    # Keeping and removing

    def _newest(self, step: int) -> set[Path]:
        """The folders that a killed job, or a rollback after `step`, may have to resume from."""
        folders = self._folders()
        before_rollback = next((path for path in folders if _step(path) <= step + 1 - self._rollback_steps), None)
        return {*folders[: self._rule.keep], *([before_rollback] if before_rollback else [])}

    def _prune(self, kept: set[Path]) -> None:
        """Remove all but these and those that are kept for good."""
        folders = self._folders()
        kept = kept | self._for_good(folders)
        for folder in folders:
            if folder not in kept:
                _remove(folder)

    def _for_good(self, folders: list[Path]) -> set[Path]:
        manifests = {folder: manifest for folder in folders if (manifest := _manifest(folder)) is not None}
        best = sorted(manifests, key=lambda folder: manifests[folder].loss)[: self._rule.keep_best]
        return {*best, *(folder for folder, manifest in manifests.items() if self._rule.for_good(manifest.step))}

    def retire(self) -> None:
        """Remove what only a resume would need: the job is done."""
        self.settle()
        self._prune(set())
        with suppress(OSError):  # the folder is not empty where some are kept for good
            self._root.rmdir()

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps than this."""
        self.settle()
        self._remove_after(step)

    def _remove_after(self, step: int) -> None:
        for folder in self._folders():
            if _step(folder) > step:
                _remove(folder)

    # Resuming

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose every byte is as it was published, or None. Skipped ones are logged."""
        for folder in self._folders():
            manifest = _manifest(folder)
            reason = f"its {_MANIFEST} is missing or damaged" if manifest is None else self._refusal(folder, manifest)
            if manifest is not None and reason is None:
                return Checkpoint(folder, manifest.step, int(manifest.layout[_PROCESSES]))
            self._log(f"checkpoint {folder.name} is skipped: {reason}")
        return None

    def require_room(self, checkpoint: int, model: int, steps: int, reshards: bool = False) -> None:
        """Refuse to train when the disk cannot hold what training will write.

        Args:
            checkpoint: Bytes of one checkpoint.
            model: Bytes of the trained model.
            steps: Optimizer steps of the training.
            reshards: Whether the job begins by resharding a checkpoint, which needs two more copies of one.

        Raises:
            StoreError: With what is needed and what is free.
        """
        rule = self._rule
        self._root.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())

        for_good = rule.keep_best + (steps // rule.keep_every if rule.keep_every else 0)
        kept = rule.keep + for_good + bool(self._rollback_steps)
        count = min(kept, rule.written(steps)) + 1 + 2 * reshards
        need, free = checkpoint * count + model - present, shutil.disk_usage(self._root).free
        if need > free:
            raise StoreError(
                f"training will write about {need / 1e6:,.0f} MB to {self._root} ({count} checkpoints of "
                f"{checkpoint / 1e6:,.0f} MB, one of them in the making, and the model), and {free / 1e6:,.0f} MB are "
                "free: make room, lower checkpoints.keep, or set GATEHOUSE_HOME to a folder on another disk"
            )

    def _folders(self) -> list[Path]:
        """Folders of the published checkpoints, newest first."""
        return sorted((path for path in self._root.glob(f"{_PREFIX}*") if path.is_dir()), reverse=True)

    def _refusal(self, folder: Path, manifest: CheckpointManifest) -> str | None:
        """Why a checkpoint must not be loaded, None when it may."""
        if manifest.identity != self._identity:
            return f"it belongs to identity {manifest.identity[:12]}, not {self._identity[:12]}"
        changed = [
            f"{key} {manifest.layout.get(key)} became {value}"
            for key, value in self._layout.items()
            if manifest.layout.get(key) != value and (key != _PROCESSES or key not in manifest.layout)
        ]
        if changed:
            return f"it was written under another layout ({', '.join(changed)})"

        # The names first: a file that was added would be loaded although no digest covers it.
        if set(_files(folder)) != set(manifest.files):
            return "a file is missing or was added"
        for name, entry in manifest.files.items():
            if file_entry(folder / name) != entry:
                return f"the file {name} is not as it was written"
        return None


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def _manifest(folder: Path) -> CheckpointManifest | None:
    try:
        return CheckpointManifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _remove(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first: a kill in between leaves none, rather than a damaged one."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _files(folder: Path) -> list[str]:
    """Paths of all files below a folder but the manifest, sorted.

    A link to a folder counts as a file, so that it is refused: `rglob` does not look at what it leads to.
    """
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() != _MANIFEST
    )
