"""What of a recipe's store, attempts and cache nothing needs any more, what is lost with it, and its removal.

A removal can be killed anywhere: a version first gets a hidden name, or loses its manifest in an object store, so that
a reader sees all of it or none. What was made from a version goes before it.
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

from pipeline.commands.status import age
from pipeline.graph import GRAPH
from pipeline.locks import building
from pipeline.needs import NAMES, Versions, all_versions, busy, needed
from pipeline.planner import plan_asset
from pipeline.recipe import LoadedRecipe
from pipeline.resources.debts import owes
from training.errors import Busy, StoreError, UserError
from training.fingerprint import FingerprintError, fingerprint
from training.specs.artifacts import Manifest
from training.specs.job import EVALUATION_SUFFIX
from training.storage import DELETED, Measure, Storage
from training.store import MANIFEST, Store

OWNER = "`gatehouse gc`"
_RESULT = "result.json"
_BY_VERSION = ("certificates/{}.json", "superseded/{}.json", "gate_reports/{}.html", "gate_reports/{}.md",
               "links/{}.json")
_FOLDERS = ("", "certificates", "superseded", "gate_reports", "links", "holds", "promotions")


@dataclass(frozen=True)
class Deletion:
    """Something that can go.

    Attributes:
        kind: `version`, `attempt`, `copy`, `remains` or `upload`.
        asset: Whose lock must be held while it goes.
        name: What it is.
        loss: What cannot be had again without it, or at what cost.
        delete: Removes it; returns why it was kept after all, or nothing.
    """

    kind: str
    asset: str
    name: str
    bytes: int
    loss: str
    delete: Callable[[], str | None]


@dataclass(frozen=True)
class Garbage:
    """What can go, in the order in which it goes, and what is kept for a reason that a person should know."""

    deletions: list[Deletion]
    notes: list[str]


def survey(loaded: LoadedRecipe, store: Store, work: Path, keep_seconds: float) -> Garbage:
    """Look for what nothing needs; nothing is changed.

    Args:
        work: Folder of the attempts.
        keep_seconds: What is younger than this is kept.

    Raises:
        StoreError: Something cannot be read that says what is needed.
    """
    versions = all_versions(store)
    kept = needed(store, versions, work, keep_seconds)
    working = busy(work, store.recipe)
    notes = [f"{name} is being worked at: its versions and attempts are kept, and what its job reads"
             for name in working]
    collector = _Collector(loaded, store, versions, kept, time.time() - keep_seconds, notes)
    found: list[Deletion] = []
    for name in (name for name in _dependents_first() if name not in working):
        found += collector.attempts(name, work / store.recipe / name)
        found += collector.copies(name)
        found += collector.versions(name)
        found += collector.remains(name)
    return Garbage([*found, *collector.uploads()], notes)


def sweep(garbage: Garbage, store: Store, work: Path, say: Callable[[Deletion, str], None]) -> None:
    """Delete.

    Args:
        say: Gets each thing, and why it was kept after all: empty when it is gone.

    Raises:
        StoreError: Something could not be removed; no version is visible in part.
    """
    for asset, group in groupby(garbage.deletions, key=lambda deletion: deletion.asset):
        deletions = list(group)
        try:
            with building(work, store.recipe, asset, OWNER):
                for deletion in deletions:
                    say(deletion, deletion.delete() or "")
        except Busy as error:
            for deletion in deletions:
                say(deletion, str(error))


def _dependents_first() -> Iterator[str]:
    for asset in reversed(GRAPH):
        yield from (asset + EVALUATION_SUFFIX, asset)


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
                yield Deletion("version", name, f"{name} {version}", manifest.bytes, self._loss(manifest),
                               partial(self._delete_version, name, version))

    def _delete_version(self, name: str, version: str) -> str | None:
        pointer = self.store.promotion(name)
        if pointer is not None and pointer.version == version:
            return "it was promoted just now"
        self._storage.remove_folder(self.store.place(name, version), first=MANIFEST)
        for record in _BY_VERSION:
            self._storage.remove(self.store.base / name / record.format(version))
        for waiver in self.store.waivers(name, version):
            self.store.remove_waiver(name, version, waiver.gate)
        return None

    def _loss(self, manifest: Manifest) -> str:
        """What cannot be had again once a version is gone, and how long it takes where it can."""
        why = [f"{used.asset} {used.version} goes too" for used in manifest.inputs.values()
               if (used.asset, used.version) not in self.kept]
        try:
            code = fingerprint(f"training.stages.{manifest.stage}")
        except FingerprintError:
            code = ""
        if code != manifest.fingerprint:
            why.append("its code has changed since")
        again = (f"it cannot be made again: {', '.join(why)}" if why
                 else f"the same recipe and inputs make it again in {age(manifest.seconds)}")
        return f"{self._standing(manifest)}; {again}"

    def _standing(self, manifest: Manifest) -> str:
        asset, version = manifest.asset, manifest.version
        if asset.endswith(EVALUATION_SUFFIX):
            judged = [f"{used.asset} {used.version}" for used in manifest.inputs.values()
                      if used.asset == asset.removesuffix(EVALUATION_SUFFIX)]
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
                yield Deletion("attempt", name, str(attempt), measure.bytes, loss, partial(_delete_local, attempt))

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
        return (f"the checkpoints of a build of {name} that was not finished, under another recipe, code or input than "
                "today's")

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
        kept = {f"{version}-{manifest.digest[:12]}" for version, manifest in self.there[name].items()
                if (name, version) in self.kept}
        for copy in sorted((self.store.cache / self.store.recipe / name).glob("*")):
            measure = _local(copy)
            if copy.name not in kept and measure.changed <= self.before:
                yield Deletion("copy", name, str(copy), measure.bytes, "nothing: it is copied again when it is needed",
                               partial(_delete_local, copy))

    # Remains

    def remains(self, name: str) -> Iterable[Deletion]:
        """What a kill left: half a publish, half a deletion, half a record, records of a version that is gone."""
        base = self.store.base / name
        inside = self._storage.names(base)
        for version in self._storage.names(base / "versions") if inside else ():
            deleted = version.startswith(DELETED)
            if version not in self.there[name] and (found := self._remains(
                    name, base / "versions" / version, "what an earlier deletion left" if deleted
                    else "no version: it has no manifest", 0.0 if deleted else self.before)):
                yield found
        for folder in (base / part for part in _FOLDERS if not part or part in inside):
            for file in self._storage.names(folder):
                orphan = folder != base and folder.name in ("certificates", "superseded", "gate_reports") and (
                    file.rsplit(".", 1)[0] not in self.there[name])
                if (file.startswith(".") or orphan) and (found := self._remains(
                        name, folder / file, "a record of a version that is gone" if orphan else "half a record",
                        self.before)):
                    yield found

    def _remains(self, name: str, path: PurePosixPath, what: str, before: float) -> Deletion | None:
        measure = self._storage.measure(path)
        if before and measure.changed > before:
            return None
        return Deletion("remains", name, self._storage.address(path), measure.bytes, f"nothing: {what}",
                        partial(self._delete_remains, path))

    def _delete_remains(self, path: PurePosixPath) -> None:
        if path.parent.name == "versions":
            self._storage.remove_folder(path, first=MANIFEST)
        else:
            self._storage.remove(path)

    def uploads(self) -> Iterable[Deletion]:
        """Multipart uploads that nobody finished."""
        for upload in self._storage.unfinished_uploads():
            below = upload.path.is_relative_to(self.store.base)
            name = upload.path.relative_to(self.store.base).parts[0] if below else ""
            if name in NAMES and upload.began <= self.before:
                yield Deletion("upload", name, self._storage.address(upload.path), 0,
                               "nothing: an upload that was cut short", partial(self._storage.abort, upload))


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
        raise StoreError(f"{error.filename}: {error.strerror}; the folder of Gatehouse's state must be writable"
                         ) from error
