"""`gatehouse gc`: what of a recipe's store, attempts and cache can go, what is lost with it, and its deletion.

A deletion can be killed anywhere. A version first gets a hidden name, or loses its manifest in an object store, so that
a reader sees all of it or none.

A version goes before its evidence and before what it was made from. Each is asked about once more before it goes. A
person who promotes a version meanwhile therefore finds it whole with all that it rests on, or gone.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from pipeline.building.planner import plan_asset
from pipeline.graph import in_order, is_asset, stored_assets
from pipeline.humanize import age
from pipeline.jobs.locks import building
from pipeline.recipes.loader import LoadedRecipe
from pipeline.tracking.outbox import has_undelivered
from pipeline.upkeep.retention import RetainedVersions, Versions, busy
from training.errors import Busy, StoreError, UserError
from training.job.fingerprint import FingerprintError, fingerprint
from training.specs.artifacts import Manifest
from training.specs.job import EVALUATION_SUFFIX
from training.store.storage import DELETED, Measure, Storage
from training.store.store import MANIFEST, Store

OWNER = "`gatehouse gc`"
_RESULT = "result.json"
_BY_VERSION = (
    "certificates/{}.json",
    "superseded/{}.json",
    "gate_reports/{}.html",
    "gate_reports/{}.md",
    "links/{}.json",
)
_OF_A_VERSION = ("waivers", "adoptions")
"""Folders that hold a folder of records for each version."""

_ORPHANS = ("certificates", "superseded", "gate_reports", "links", *_OF_A_VERSION)
_FOLDERS = ("", *_ORPHANS, "holds", "promotions")
_NO_VERSION = "promoted.json"  # in `links/` it says what MLflow was told of


@dataclass(frozen=True)
class Deletion:
    """Something that can go.

    Attributes:
        kind: `version`, `attempt`, `copy`, `leftover` or `upload`.
        asset: Whose lock must be held while it goes.
        name: What it is.
        loss: What cannot be had again without it, or at what cost.
        delete: Removes it; returns why it was kept after all, or nothing.
        version: The version that it is, or without which it goes; empty where there is none.
    """

    kind: str
    asset: str
    name: str
    bytes: int
    loss: str
    delete: Callable[[], str | None]
    version: str = ""


@dataclass(frozen=True)
class Garbage:
    """What can go, in the order in which it goes.

    Attributes:
        notes: What is kept for a reason that a person should know.
        retained: The versions that are kept.
    """

    deletions: list[Deletion]
    notes: list[str]
    retained: RetainedVersions


def find_garbage(loaded: LoadedRecipe, store: Store, work: Path, keep_seconds: float) -> Garbage:
    """Look for what nothing keeps; nothing is changed.

    Args:
        work: Folder of the attempts.
        keep_seconds: What is younger than this is kept.

    Raises:
        StoreError: A record that decides about it cannot be read.
    """
    before = time.time() - keep_seconds  # taken first: what appears during the search is younger
    retained = RetainedVersions(store, work, before)
    working = busy(work, store.recipe)
    notes = [
        f"{name} is being worked at: its versions and attempts are kept, and what its job reads" for name in working
    ]
    # Such a run may have begun after the scan, and may have ended before the next one. Its locks alone do not do.
    for name in working:
        for version in retained.versions.get(name, {}):
            retained.keep_failed(name, version)

    collector = _Collector(loaded, store, retained.versions, retained.reasons, before, notes)
    deletions: list[Deletion] = []
    for name in (name for name in _dependents_first(store, work) if name not in working):
        deletions += collector.attempts(name, work / store.recipe / name)
        deletions += collector.copies(name)
        deletions += collector.stored_versions(name)
        deletions += collector.leftover_files(name)
    return Garbage([*deletions, *collector.uploads()], notes, retained)


def delete_garbage(garbage: Garbage, store: Store, work: Path, on_deletion: Callable[[Deletion, str], None]) -> None:
    """Delete what is still not kept.

    Args:
        on_deletion: Gets each thing, and why it was kept after all: empty when it is gone.

    Raises:
        StoreError: Something could not be removed, or a record that decides about it cannot be read. No version is
            visible in part.
    """
    retained = garbage.retained

    def report(deletion: Deletion, kept: str) -> None:
        if kept and deletion.kind == "version":
            retained.keep_failed(deletion.asset, deletion.version)
        on_deletion(deletion, kept)

    for asset, group in groupby(garbage.deletions, key=lambda deletion: deletion.asset):
        deletions = list(group)
        try:
            # The lock keeps builders out, and promotions need none. Hence the scan, and a question before each version.
            with building(work, store.recipe, asset, OWNER):
                if any(deletion.version for deletion in deletions):
                    retained.rescan(locked=asset)
                for deletion in deletions:
                    kept = retained.reason(asset, deletion.version) if deletion.version else ""
                    report(deletion, kept or deletion.delete() or "")
        except Busy as error:
            for deletion in deletions:
                report(deletion, str(error))


def _dependents_first(store: Store, work: Path) -> Iterator[str]:
    """Every asset of which there is anything, in the store or among the attempts, and its evaluations."""
    attempted = {path.name.removesuffix(EVALUATION_SUFFIX) for path in (work / store.recipe).glob("*") if path.is_dir()}
    assets = {*stored_assets(store), *(name for name in attempted if is_asset(name))}
    for asset in reversed(in_order(assets)):
        yield from (asset, asset + EVALUATION_SUFFIX)


@dataclass(frozen=True)
class _Collector:
    """Finds what can go of one asset after the other.

    Attributes:
        versions: All versions there are.
        reasons: Asset and version of each that is kept, to why.
        before: What changed after that moment is kept.
        notes: Gets what is kept for a reason that a person should know.
    """

    loaded: LoadedRecipe
    store: Store
    versions: Versions
    reasons: dict[tuple[str, str], str]
    before: float
    notes: list[str]

    @property
    def _storage(self) -> Storage:
        return self.store.storage

    # Versions

    def stored_versions(self, name: str) -> Iterable[Deletion]:
        """Versions that nothing keeps, newest first."""
        for version, manifest in reversed(self.versions.get(name, {}).items()):
            if (name, version) not in self.reasons:
                yield Deletion(
                    "version",
                    name,
                    f"{name} {version}",
                    manifest.bytes,
                    self._loss(manifest),
                    partial(self._delete_version, name, version),
                    version,
                )

    def _delete_version(self, name: str, version: str) -> None:
        self._storage.remove_folder(self.store.place(name, version), first=MANIFEST)
        for record in _BY_VERSION:
            self._storage.remove(self.store.base / name / record.format(version))

        for kind in _OF_A_VERSION:
            records = self.store.base / name / kind / version
            if self._storage.exists(records):
                self._storage.remove_folder(records, first=MANIFEST)

    def _loss(self, manifest: Manifest) -> str:
        """What cannot be had again once a version is gone, and how long it takes where it can."""
        obstacles = [
            f"{used.asset} {used.version} goes too"
            for used in manifest.inputs.values()
            if (used.asset, used.version) not in self.reasons
        ]
        try:
            code = fingerprint(f"training.stages.{manifest.stage}")
        except FingerprintError:
            code = ""
        adopted = {adoption.fingerprint for adoption in self.store.adoptions(manifest.asset, manifest.version)}
        if code not in (manifest.fingerprint, *adopted):
            obstacles.append("its code has changed since")

        again = (
            f"it cannot be made again: {', '.join(obstacles)}"
            if obstacles
            else f"the same recipe and inputs make it again in {age(manifest.seconds)}"
        )
        return f"{self._last_judgement(manifest)}; {again}"

    def _last_judgement(self, manifest: Manifest) -> str:
        """What became of a version, or what an evaluation is evidence about."""
        asset, version = manifest.asset, manifest.version
        if asset.endswith(EVALUATION_SUFFIX):
            judged = [
                f"{used.asset} {used.version}"
                for used in manifest.inputs.values()
                if used.asset == asset.removesuffix(EVALUATION_SUFFIX)
            ]
            return f"evidence about {', '.join(judged)}"

        pointer, certificate = self.store.promotion(asset), self.store.certificate(asset, version)
        if certificate is None:
            return "never judged"
        if not certificate.passed:
            return "refused by its gates"
        return f"superseded by {pointer.version}" if pointer else "promoted no longer"

    # Attempts

    def attempts(self, name: str, folder: Path) -> Iterable[Deletion]:
        """Attempts whose version is gone, and builds that were given up."""
        attempts = sorted(path for path in folder.glob("*") if path.is_dir())
        current = self._current_attempt(name) if attempts else None
        for attempt in attempts:
            # Measured before it is asked about: a build that begins in between makes it young.
            measure = _local(attempt)
            loss = self._attempt_loss(name, attempt, current)

            if loss and (measure.changed <= self.before or attempt.name.startswith(DELETED)):
                yield Deletion(
                    "attempt",
                    name,
                    str(attempt),
                    measure.bytes,
                    loss,
                    partial(_delete_local, attempt),
                    "" if attempt.name.startswith(".") else _result(attempt) or "",
                )

    def _attempt_loss(self, name: str, attempt: Path, current: str | None) -> str:
        """What is lost with an attempt; empty when it is kept."""
        if attempt.name.startswith(DELETED):
            return "nothing: what an earlier deletion left"
        if has_undelivered(attempt):
            self.notes.append(f"{attempt} is kept: MLflow has not got all of it yet; `gatehouse sync` tells it")
            return ""

        made = _result(attempt)
        if made is not None:
            return "" if (name, made) in self.reasons else f"the log of {name} {made}"
        if current is None or attempt.name == current:
            return ""
        return (
            f"the checkpoints of a build of {name} that was not finished, under another recipe, code or input than "
            "today's"
        )

    def _current_attempt(self, name: str) -> str | None:
        """Folder of the attempt that the recipe asks for now, empty for evaluations; None when it cannot be told."""
        if name not in self.loaded.graph:
            return ""
        try:
            return plan_asset(name, self.loaded, self.store).identity[:16]
        except UserError:  # an input is not promoted, so any of its unfinished builds may be asked for again
            return None

    # The local cache

    def copies(self, name: str) -> Iterable[Deletion]:
        """Local copies of remote versions that nothing needs, and copies that were cut short."""
        if self.store.is_local or self.store.cache is None:
            return

        # A copy is named as `Store` names it.
        version_of = {
            f"{version}-{manifest.digest[:12]}": version for version, manifest in self.versions.get(name, {}).items()
        }
        for copy in sorted((self.store.cache / self.store.recipe / name).glob("*")):
            measure, version = _local(copy), version_of.get(copy.name, "")
            if (name, version) not in self.reasons and measure.changed <= self.before:
                yield Deletion(
                    "copy",
                    name,
                    str(copy),
                    measure.bytes,
                    "nothing: it is copied again when it is needed",
                    partial(_delete_local, copy),
                    version,
                )

    # Leftover files

    def leftover_files(self, name: str) -> Iterable[Deletion]:
        """What a kill left: half a publish, half a deletion, half a record, records of a version that is gone."""
        base, versions = self.store.base / name, self.versions[name]
        inside = self._storage.names(base)
        for version in self._storage.names(base / "versions") if inside else ():
            if version not in versions:
                yield from self._leftover(name, base / "versions" / version, "no version: it has no manifest", version)

        for folder in (base / part for part in _FOLDERS if not part or part in inside):
            for file in self._storage.names(folder):
                version = file.rsplit(".", 1)[0]
                if file.startswith("."):
                    yield from self._leftover(name, folder / file, "half a record")
                elif folder != base and folder.name in _ORPHANS and version not in versions and file != _NO_VERSION:
                    yield from self._leftover(name, folder / file, "a record of a version that is gone", version)
                elif folder.name in _OF_A_VERSION:
                    for half in (half for half in self._storage.names(folder / file) if half.startswith(".")):
                        yield from self._leftover(name, folder / file / half, "half a record")

    def _leftover(self, name: str, path: PurePosixPath, what: str, version: str = "") -> Iterator[Deletion]:
        deleted, measure = path.name.startswith(DELETED), self._storage.measure(path)
        # Nobody makes what a deletion has renamed. Anything else may be in the making while it is young.
        if deleted or measure.changed <= self.before:
            loss = f"nothing: {'what an earlier deletion left' if deleted else what}"
            yield Deletion(
                "leftover",
                name,
                self._storage.address(path),
                measure.bytes,
                loss,
                partial(self._delete_leftover, path, name, "" if path.name.startswith(".") else version),
            )

    def _delete_leftover(self, path: PurePosixPath, name: str, version: str) -> str | None:
        # A publish into an object store writes the manifest last: what had none at the search may have one now.
        if version and self._storage.exists(self.store.place(name, version) / MANIFEST):
            return f"{name} {version} is there now"
        if path.parent.name in ("versions", *_OF_A_VERSION):
            self._storage.remove_folder(path, first=MANIFEST)
        else:
            self._storage.remove(path)
        return None

    def uploads(self) -> Iterable[Deletion]:
        """Multipart uploads that nobody finished."""
        for upload in self._storage.unfinished_uploads():
            below = upload.path.is_relative_to(self.store.base)
            name = upload.path.relative_to(self.store.base).parts[0] if below else ""
            if is_asset(name.removesuffix(EVALUATION_SUFFIX)) and upload.began <= self.before:
                yield Deletion(
                    "upload",
                    name,
                    self._storage.address(upload.path),
                    0,
                    "nothing: an upload that was cut short",
                    partial(self._storage.abort, upload),
                )


def _result(attempt: Path) -> str | None:
    """The version that an attempt made; None when it made none."""
    try:
        return str(json.loads((attempt / _RESULT).read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _local(path: Path) -> Measure:
    return Storage(str(path.parent)).measure(PurePosixPath(path))


def _delete_local(path: Path) -> None:
    try:
        # Killed in between, the next gc knows by the name that nobody uses it.
        hidden = path if path.name.startswith(".") else path.with_name(f"{DELETED}{path.name}")
        path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise StoreError(
            f"{error.filename}: {error.strerror}; the folder of Gatehouse's state must be writable"
        ) from error
