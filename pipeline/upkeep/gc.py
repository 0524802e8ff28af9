"""What of a recipe's store, attempts and cache nothing needs any more, what is lost with it, and its removal.

A removal can be killed anywhere: a version first gets a hidden name, or loses its manifest in an object store, so that
a reader sees all of it or none. A version goes before its evidence and before what it was made from, and each only when
it is still not needed: who promotes a version meanwhile finds it whole with all that it rests on, or gone.
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
from pipeline.graph import GRAPH
from pipeline.humanize import age
from pipeline.jobs.locks import building
from pipeline.recipes.loader import LoadedRecipe
from pipeline.tracking.outbox import owes
from pipeline.upkeep.retention import NAMES, Standing, Versions, busy
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
_NO_VERSION = "promoted.json"


@dataclass(frozen=True)
class Deletion:
    """Something that can go.

    Attributes:
        kind: `version`, `attempt`, `copy`, `remains` or `upload`.
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
        standing: What is needed.
    """

    deletions: list[Deletion]
    notes: list[str]
    standing: Standing


def survey(loaded: LoadedRecipe, store: Store, work: Path, keep_seconds: float) -> Garbage:
    """Look for what nothing needs; nothing is changed.

    Args:
        work: Folder of the attempts.
        keep_seconds: What is younger than this is kept.

    Raises:
        StoreError: Something cannot be read that says what is needed.
    """
    before = time.time() - keep_seconds  # first of all: what appears during the survey is younger
    standing = Standing(loaded, store, work, before)
    working = busy(work, store.recipe)
    notes = [
        f"{name} is being worked at: its versions and attempts are kept, and what its job reads" for name in working
    ]
    for name in working:  # the run may have begun after the look, and may have ended before the next one
        for version in standing.versions[name]:
            standing.stays(name, version)
    collector = _Collector(loaded, store, standing.versions, standing.kept, before, notes)
    found: list[Deletion] = []
    for name in (name for name in _dependents_first() if name not in working):
        found += collector.attempts(name, work / store.recipe / name)
        found += collector.copies(name)
        found += collector.versions(name)
        found += collector.remains(name)
    return Garbage([*found, *collector.uploads()], notes, standing)


def sweep(garbage: Garbage, store: Store, work: Path, say: Callable[[Deletion, str], None]) -> None:
    """Delete what is still not needed.

    Args:
        say: Gets each thing, and why it was kept after all: empty when it is gone.

    Raises:
        StoreError: Something could not be removed, or cannot be read that says what is needed; no version is visible in
            part.
    """
    standing = garbage.standing

    def tell(deletion: Deletion, kept: str) -> None:
        if kept and deletion.kind == "version":
            standing.stays(deletion.asset, deletion.version)
        say(deletion, kept)

    for asset, group in groupby(garbage.deletions, key=lambda deletion: deletion.asset):
        deletions = list(group)
        try:
            with building(work, store.recipe, asset, OWNER):
                if any(deletion.version for deletion in deletions):
                    standing.look(mine=asset)
                for deletion in deletions:
                    needed = standing.why(asset, deletion.version) if deletion.version else ""
                    tell(deletion, needed or deletion.delete() or "")
        except Busy as error:
            for deletion in deletions:
                tell(deletion, str(error))


def _dependents_first() -> Iterator[str]:
    for asset in reversed(GRAPH):
        yield from (asset, asset + EVALUATION_SUFFIX)


@dataclass(frozen=True)
class _Collector:
    loaded: LoadedRecipe
    store: Store
    there: Versions
    kept: dict[tuple[str, str], str]
    before: float
    notes: list[str]

    @property
    def _storage(self) -> Storage:
        return self.store.storage

    # Versions

    def versions(self, name: str) -> Iterable[Deletion]:
        """Versions that nothing needs, newest first."""
        for version, manifest in reversed(self.there[name].items()):
            if (name, version) not in self.kept:
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
        why = [
            f"{used.asset} {used.version} goes too"
            for used in manifest.inputs.values()
            if (used.asset, used.version) not in self.kept
        ]
        try:
            code = fingerprint(f"training.stages.{manifest.stage}")
        except FingerprintError:
            code = ""
        adopted = {adoption.fingerprint for adoption in self.store.adoptions(manifest.asset, manifest.version)}
        if code not in (manifest.fingerprint, *adopted):
            why.append("its code has changed since")
        again = (
            f"it cannot be made again: {', '.join(why)}"
            if why
            else f"the same recipe and inputs make it again in {age(manifest.seconds)}"
        )
        return f"{self._standing(manifest)}; {again}"

    def _standing(self, manifest: Manifest) -> str:
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
        found = sorted(path for path in folder.glob("*") if path.is_dir())
        wanted = self._wanted(name) if found else None
        for attempt in found:
            measure = _local(attempt)
            loss = self._attempt_loss(name, attempt, wanted)
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

    def _attempt_loss(self, name: str, attempt: Path, wanted: str | None) -> str:
        """What is lost with an attempt; empty when it is needed."""
        if attempt.name.startswith(DELETED):
            return "nothing: what an earlier deletion left"
        if owes(attempt):
            self.notes.append(f"{attempt} is kept: MLflow has not got all of it yet; `gatehouse sync` tells it")
            return ""
        made = _result(attempt)
        if made is not None:
            return "" if (name, made) in self.kept else f"the log of {name} {made}"
        if wanted is None or attempt.name == wanted:
            return ""
        return (
            f"the checkpoints of a build of {name} that was not finished, under another recipe, code or input than "
            "today's"
        )

    def _wanted(self, name: str) -> str | None:
        """Folder of the attempt that the recipe asks for now, empty for evaluations; None when it cannot be told."""
        if name not in GRAPH:
            return ""
        try:
            return plan_asset(name, self.loaded, self.store).identity[:16]
        except UserError:  # what it is made from is not promoted; its unfinished builds may be asked for again
            return None

    # The local cache

    def copies(self, name: str) -> Iterable[Deletion]:
        """Local copies of remote versions that nothing needs, and copies that were cut short."""
        if self.store.is_local or self.store.cache is None:
            return
        known = {f"{version}-{manifest.digest[:12]}": version for version, manifest in self.there[name].items()}
        for copy in sorted((self.store.cache / self.store.recipe / name).glob("*")):
            measure, version = _local(copy), known.get(copy.name, "")
            if (name, version) not in self.kept and measure.changed <= self.before:
                yield Deletion(
                    "copy",
                    name,
                    str(copy),
                    measure.bytes,
                    "nothing: it is copied again when it is needed",
                    partial(_delete_local, copy),
                    version,
                )

    # Remains

    def remains(self, name: str) -> Iterable[Deletion]:
        """What a kill left: half a publish, half a deletion, half a record, records of a version that is gone."""
        base, there = self.store.base / name, self.there[name]
        inside = self._storage.names(base)
        for version in self._storage.names(base / "versions") if inside else ():
            if version not in there:
                yield from self._remains(name, base / "versions" / version, "no version: it has no manifest", version)
        for folder in (base / part for part in _FOLDERS if not part or part in inside):
            for file in self._storage.names(folder):
                version = file.rsplit(".", 1)[0]
                if file.startswith("."):
                    yield from self._remains(name, folder / file, "half a record")
                elif folder != base and folder.name in _ORPHANS and version not in there and file != _NO_VERSION:
                    yield from self._remains(name, folder / file, "a record of a version that is gone", version)
                elif folder.name in _OF_A_VERSION:
                    for half in (half for half in self._storage.names(folder / file) if half.startswith(".")):
                        yield from self._remains(name, folder / file / half, "half a record")

    def _remains(self, name: str, path: PurePosixPath, what: str, version: str = "") -> Iterator[Deletion]:
        deleted, measure = path.name.startswith(DELETED), self._storage.measure(path)
        if deleted or measure.changed <= self.before:
            loss = f"nothing: {'what an earlier deletion left' if deleted else what}"
            yield Deletion(
                "remains",
                name,
                self._storage.address(path),
                measure.bytes,
                loss,
                partial(self._delete_remains, path, name, "" if path.name.startswith(".") else version),
            )

    def _delete_remains(self, path: PurePosixPath, name: str, version: str) -> str | None:
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
            if name in NAMES and upload.began <= self.before:
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
        hidden = path if path.name.startswith(".") else path.with_name(f"{DELETED}{path.name}")
        path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise StoreError(
            f"{error.filename}: {error.strerror}; the folder of Gatehouse's state must be writable"
        ) from error
