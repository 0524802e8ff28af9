"""The store: immutable versions of artifacts, their certificates, and which version is promoted.

Layout, under `<root>/<recipe>/<asset>/`::

    versions/<version>/...             the files of one version
    versions/<version>/manifest.json   written last; without it the version does not exist
    certificates/<version>.json        the newest judgement of that version
    promoted.json                      the version that downstream reads
    links/<version>.json               where it is shown: MLflow run, Dagster run

The root is a local folder or an object store's URL such as `s3://bucket/prefix`. A reader sees a whole version or none:
on a local disk a finished folder is renamed into place, in an object store the manifest is the last object written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from training.errors import InputRefused, StoreError
from training.specs.artifacts import Certificate, FileEntry, Manifest, Promotion, content_digest
from training.specs.base import Spec
from training.specs.job import EVALUATION_SUFFIX
from training.storage import Storage, fsync, relative_files, write_durably

MANIFEST = "manifest.json"
_Record = TypeVar("_Record", bound=Spec)


class Store:
    """One recipe's artifacts.

    Args:
        root: A local folder or a URL that fsspec understands.
        recipe: Name of the recipe; different recipes never share versions.
        cache: Local folder for copies of remote versions; unused for a local root.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened.
    """

    def __init__(self, root: str, recipe: str, cache: Path | None = None) -> None:
        self._storage = Storage(root)
        self.root = self._storage.root
        self.is_local = self._storage.is_local
        self.recipe = recipe
        self.cache = cache
        self._base = self._storage.base / recipe

    # Reading

    def versions(self, asset: str) -> list[str]:
        """Published versions of an asset, oldest first."""
        folder = self._base / asset / "versions"
        return sorted(name for name in self._storage.names(folder) if not name.startswith(".")
                      and self._storage.exists(folder / name / MANIFEST))

    def manifest(self, asset: str, version: str) -> Manifest:
        """The manifest of one version.

        Raises:
            StoreError: There is no such version, or its manifest is damaged.
        """
        found = self._read(self._base / asset / "versions" / version / MANIFEST, Manifest)
        if found is None:
            raise StoreError(f"{asset} has no version {version} in {self.root}; `gatehouse status` lists what there is")
        return found

    def find(self, asset: str, identity: str) -> Manifest | None:
        """The newest version of an asset with this identity."""
        for version in reversed(self.versions(asset)):
            found = self.manifest(asset, version)
            if found.identity == identity:
                return found
        return None

    def latest(self, asset: str) -> Manifest | None:
        """The newest version of an asset, promoted or not."""
        versions = self.versions(asset)
        return self.manifest(asset, versions[-1]) if versions else None

    def promotion(self, asset: str) -> Promotion | None:
        """Which version of an asset is promoted."""
        return self._read(self._base / asset / "promoted.json", Promotion)

    def certificate(self, asset: str, version: str) -> Certificate | None:
        """The newest judgement of a version."""
        return self._read(self._base / asset / "certificates" / f"{version}.json", Certificate)

    def links(self, asset: str, version: str) -> dict[str, str]:
        """Where a version is shown: `mlflow_run_id`, `dagster_run_id` and the like."""
        path = self._base / asset / "links" / f"{version}.json"
        data = self._storage.read(path)
        try:
            return dict(json.loads(data)) if data else {}
        except (ValueError, TypeError) as error:
            raise self._damaged(path, str(error)) from error

    def uri(self, asset: str, version: str) -> str:
        """Address of a version's folder, for people."""
        return self._storage.address(self._base / asset / "versions" / version)

    def folder(self, asset: str, version: str) -> Path:
        """A local folder with a version's files; a remote version is copied to the cache first.

        Raises:
            StoreError: There is no such version, or it cannot be copied.
        """
        source = self._base / asset / "versions" / version
        if self.is_local:
            return Path(source)
        manifest = self.manifest(asset, version)
        target = self._copy(manifest)
        if not target.exists():
            partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
            try:
                for name in [*manifest.files, MANIFEST]:
                    self._storage.download(source / name, partial / name)
                with suppress(OSError):  # another process copied it first
                    partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target

    def _copy(self, manifest: Manifest) -> Path:
        if self.cache is None:
            raise StoreError(f"{self.root} is remote and no local cache folder was configured")
        return self.cache / self.recipe / manifest.asset / f"{manifest.version}-{manifest.digest[:12]}"

    def verified_folder(self, asset: str, version: str, digest: str) -> Path:
        """As `folder`, after reading every byte and comparing it with the manifest and the expected content digest.

        Raises:
            InputRefused: A file is missing, was added or changed, or the content is not the expected one.
        """
        manifest = self.manifest(asset, version)
        folder = self.folder(asset, version)
        repair = _REBUILD if self.is_local else f"delete {folder} to have it copied again, or {_REBUILD}"
        for name, entry in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise InputRefused(f"{asset} {version}: the file {name} is missing from {folder}; {repair}")
            if file_entry(path) != entry:
                raise InputRefused(f"{asset} {version}: the file {name} has changed since it was published "
                                   f"({folder}); {repair}")
        extra = set(relative_files(folder)) - set(manifest.files) - {MANIFEST}
        if extra:
            raise InputRefused(f"{asset} {version}: {', '.join(sorted(extra))} was added after publishing ({folder}); "
                               f"{repair}")
        if content_digest(manifest.files) != manifest.digest or manifest.digest != digest:
            raise InputRefused(f"{asset} {version}: its content digest is {content_digest(manifest.files)[:12]}, not "
                               f"{digest[:12]} as expected; {_REBUILD}")
        return folder

    def require_promoted(self, asset: str, version: str, digest: str) -> Certificate:
        """Refuse a version unless it is promoted and its certificate vouches for these very bytes.

        Returns:
            The certificate.

        Raises:
            InputRefused: With the reason, the gate that refused it where there is one, and what to do.
        """
        pointer = self.promotion(asset)
        if pointer is None or pointer.version != version:
            raise InputRefused(self.explain_unpromoted(asset, wanted=version))
        certificate = self.certificate(asset, version)
        if certificate is None:
            raise InputRefused(f"{asset} {version} has no certificate; materialize {asset} to have it judged")
        if certificate.digest != pointer.certificate_digest:
            raise InputRefused(f"{asset} {version}: its certificate is not the one it was promoted with; materialize "
                               f"{asset} to have it judged again")
        if not certificate.passed:
            raise InputRefused(self.explain_unpromoted(asset, wanted=version))
        if (certificate.asset, certificate.version, certificate.artifact_digest) != (asset, version, digest):
            raise InputRefused(f"{asset} {version}: its certificate belongs to {certificate.asset} "
                               f"{certificate.version} with digest {certificate.artifact_digest[:12]}, not "
                               f"{digest[:12]}")
        return certificate

    def explain_unpromoted(self, asset: str, wanted: str | None = None) -> str:
        """Why nothing (or not the wanted version) of an asset is promoted, in one sentence that says what to do."""
        latest = self.latest(asset)
        if latest is None:
            return f"{asset} was never built: materialize {asset} first"
        version = wanted or latest.version
        certificate = self.certificate(asset, version)
        if certificate is None:
            return f"{asset} {version} was never judged: materialize {asset} so that its gates run"
        refused = [verdict.reason for verdict in certificate.verdicts if not verdict.passed]
        if refused:
            return f"{asset} {version} is not promoted; its gate refused it: {'; '.join(refused)}"
        return f"{asset} {version} is not promoted: materialize {asset} to have it judged again"

    # Writing

    def publish(self, source: Path, manifest: Manifest) -> Manifest:
        """Publish a folder as a new version; the folder is gone afterwards.

        Args:
            source: Folder with the finished files, on the same filesystem as a local root.
            manifest: Complete but for `version`, `digest` and `files`, which are filled in here.

        Raises:
            StoreError: No room, no permission, or no connection. Nothing that was published before is touched.
        """
        files = {name: file_entry(source / name) for name in sorted(relative_files(source)) if name != MANIFEST}
        if not files:
            raise StoreError(f"{manifest.asset}: {source} holds no file to publish")
        version = self._free_version(manifest)
        whole = manifest.model_copy(update={"version": version, "files": files, "digest": content_digest(files)})
        target = self._base / manifest.asset / "versions" / version
        with self._storage.errors(target):
            if self.is_local:
                self._publish_local(source, Path(target), whole)
            else:
                self._publish_remote(source, target, whole)
        return whole

    def _free_version(self, manifest: Manifest) -> str:
        folder = self._base / manifest.asset / "versions"
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        version = f"{stamp}-{manifest.identity[:8]}"
        for attempt in range(2, 1000):
            if not self._storage.exists(folder / version):
                break
            version = f"{stamp}-{manifest.identity[:8]}-{attempt}"
        return version

    def _publish_local(self, source: Path, target: Path, manifest: Manifest) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
        try:
            source.rename(staged)
        except OSError:  # another filesystem
            shutil.copytree(source, staged)
            shutil.rmtree(source)
        for name in manifest.files:
            fsync(staged / name)
        write_durably(staged / MANIFEST, _dump(manifest))
        for folder in {staged, *((staged / name).parent for name in manifest.files)}:
            fsync(folder)
        staged.rename(target)
        fsync(target.parent)

    def _publish_remote(self, source: Path, target: PurePosixPath, manifest: Manifest) -> None:
        for name in manifest.files:
            self._storage.upload(source / name, target / name)
        self._storage.write(target / MANIFEST, _dump(manifest))
        if self.cache is not None:  # whoever reads it next on this machine need not fetch it
            copy = self._copy(manifest)
            copy.parent.mkdir(parents=True, exist_ok=True)
            (source / MANIFEST).write_bytes(_dump(manifest))
            with suppress(OSError):  # another filesystem
                source.rename(copy)
        shutil.rmtree(source, ignore_errors=True)

    def write_certificate(self, certificate: Certificate) -> None:
        """Keep a judgement; it replaces the version's earlier one."""
        self._storage.write(self._base / certificate.asset / "certificates" / f"{certificate.version}.json",
                    _dump(certificate))

    def promote(self, promotion: Promotion) -> None:
        """Move the pointer of an asset.

        Raises:
            InputRefused: The version's certificate is missing, failed, or vouches for other bytes.
        """
        certificate = self.certificate(promotion.asset, promotion.version)
        manifest = self.manifest(promotion.asset, promotion.version)
        if (certificate is None or not certificate.passed or certificate.digest != promotion.certificate_digest
                or not certificate.artifact_digest == promotion.digest == manifest.digest):
            raise InputRefused(self.explain_unpromoted(promotion.asset, wanted=promotion.version))
        self._storage.write(self._base / promotion.asset / "promoted.json", _dump(promotion))

    def withdraw(self, asset: str) -> None:
        """Remove an asset's promotion pointer."""
        self._storage.remove(self._base / asset / "promoted.json")

    def write_links(self, asset: str, version: str, links: dict[str, str]) -> None:
        """Add to where a version is shown."""
        merged = self.links(asset, version) | links
        self._storage.write(self._base / asset / "links" / f"{version}.json", json.dumps(merged, indent=1).encode())

    # Records

    def _read(self, path: PurePosixPath, record: type[_Record]) -> _Record | None:
        data = self._storage.read(path)
        if data is None:
            return None
        try:
            return record.model_validate_json(data)
        except ValidationError as error:
            raise self._damaged(path, error.errors()[0]["msg"]) from error

    def _damaged(self, path: PurePosixPath, reason: str) -> StoreError:
        """For a file whose loss costs nothing but a job: what it says is found again by materializing its asset."""
        asset = path.relative_to(self._base).parts[0].removesuffix(EVALUATION_SUFFIX)
        return StoreError(f"{self._storage.address(path)} is damaged: {reason}; delete this file and materialize "
                          f"{asset} again")


_REBUILD = "materialize it again with force to replace it"


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileEntry(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _dump(record: Spec) -> bytes:
    value: Any = record.model_dump(mode="json")
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
