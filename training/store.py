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
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from pydantic import ValidationError

from training.errors import InputRefused, StoreError
from training.specs.artifacts import Certificate, FileEntry, Manifest, Promotion, content_digest
from training.specs.base import Spec
from training.specs.job import EVALUATION_SUFFIX

MANIFEST = "manifest.json"
_Record = TypeVar("_Record", bound=Spec)


class Store:
    """One recipe's artifacts.

    Args:
        root: A local folder or a URL that fsspec understands.
        recipe: Name of the recipe; different recipes never share versions.
        cache: Local folder for copies of remote versions; unused for a local root.
    """

    def __init__(self, root: str, recipe: str, cache: Path | None = None) -> None:
        self.root = root
        self.recipe = recipe
        self._fs, path = fsspec.core.url_to_fs(root)
        self._base = PurePosixPath(path) / recipe
        self.is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._cache = cache

    # Reading

    def versions(self, asset: str) -> list[str]:
        """Published versions of an asset, oldest first."""
        folder = str(self._base / asset / "versions")
        with self._errors(folder):
            self._fs.invalidate_cache()
            if not self._fs.exists(folder):
                return []
            names = [PurePosixPath(path).name for path in self._fs.ls(folder, detail=False)]
            return sorted(name for name in names if not name.startswith(".")
                          and self._fs.exists(f"{folder}/{name}/{MANIFEST}"))

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
        data = self._read_bytes(path)
        try:
            return dict(json.loads(data)) if data else {}
        except (ValueError, TypeError) as error:
            raise self._damaged(path, str(error)) from error

    def uri(self, asset: str, version: str) -> str:
        """Address of a version's folder, for people."""
        return self._address(self._base / asset / "versions" / version)

    def folder(self, asset: str, version: str) -> Path:
        """A local folder with a version's files; a remote version is copied to the cache first.

        Raises:
            StoreError: There is no such version, or it cannot be copied.
        """
        source = self._base / asset / "versions" / version
        if self.is_local:
            return Path(source)
        if self._cache is None:
            raise StoreError(f"{self.root} is remote and no local cache folder was configured")
        manifest = self.manifest(asset, version)
        target = self._cache / self.recipe / asset / f"{version}-{manifest.digest[:12]}"
        if not target.exists():
            partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
            with self._errors(str(source)):
                for name in [*manifest.files, MANIFEST]:
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(str(source / name), str(partial / name))
            try:
                partial.rename(target)
            except OSError:  # another process copied it first
                shutil.rmtree(partial)
        return target

    def verified_folder(self, asset: str, version: str, digest: str) -> Path:
        """As `folder`, after reading every byte and comparing it with the manifest and the expected content digest.

        Raises:
            InputRefused: A file is missing, was added or changed, or the content is not the expected one.
        """
        manifest = self.manifest(asset, version)
        folder = self.folder(asset, version)
        for name, entry in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise InputRefused(f"{asset} {version}: the file {name} is missing from {folder}; {_REBUILD}")
            if file_entry(path) != entry:
                raise InputRefused(f"{asset} {version}: the file {name} has changed since it was published "
                                   f"({folder}); {_REBUILD}")
        extra = set(_relative_files(folder)) - set(manifest.files) - {MANIFEST}
        if extra:
            raise InputRefused(f"{asset} {version}: {', '.join(sorted(extra))} was added after publishing ({folder}); "
                               f"{_REBUILD}")
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
        files = {name: file_entry(source / name) for name in sorted(_relative_files(source)) if name != MANIFEST}
        if not files:
            raise StoreError(f"{manifest.asset}: {source} holds no file to publish")
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        version = f"{stamp}-{manifest.identity[:8]}"
        for attempt in range(2, 1000):
            if not self._fs.exists(str(self._base / manifest.asset / "versions" / version)):
                break
            version = f"{stamp}-{manifest.identity[:8]}-{attempt}"
        whole = manifest.model_copy(update={"version": version, "files": files, "digest": content_digest(files)})
        target = self._base / manifest.asset / "versions" / version
        with self._errors(str(target)):
            if self.is_local:
                self._publish_local(source, Path(target), whole)
            else:
                self._publish_remote(source, target, whole)
        return whole

    def _publish_local(self, source: Path, target: Path, manifest: Manifest) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
        try:
            source.rename(staged)
        except OSError:  # another filesystem
            shutil.copytree(source, staged)
            shutil.rmtree(source)
        for name in manifest.files:
            _fsync(staged / name)
        _write_durably(staged / MANIFEST, _dump(manifest))
        for folder in {staged, *((staged / name).parent for name in manifest.files)}:
            _fsync(folder)
        staged.rename(target)
        _fsync(target.parent)

    def _publish_remote(self, source: Path, target: PurePosixPath, manifest: Manifest) -> None:
        for name in manifest.files:
            self._fs.put_file(str(source / name), str(target / name))
        self._fs.pipe_file(str(target / MANIFEST), _dump(manifest))
        shutil.rmtree(source)

    def write_certificate(self, certificate: Certificate) -> None:
        """Keep a judgement; it replaces the version's earlier one."""
        self._write(self._base / certificate.asset / "certificates" / f"{certificate.version}.json",
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
        self._write(self._base / promotion.asset / "promoted.json", _dump(promotion))

    def withdraw(self, asset: str) -> None:
        """Remove an asset's promotion pointer."""
        path = str(self._base / asset / "promoted.json")
        with self._errors(path):
            if self._fs.exists(path):
                self._fs.rm_file(path)

    def write_links(self, asset: str, version: str, links: dict[str, str]) -> None:
        """Add to where a version is shown."""
        merged = self.links(asset, version) | links
        self._write(self._base / asset / "links" / f"{version}.json", json.dumps(merged, indent=1).encode())

    # Bytes

    def _read(self, path: PurePosixPath, record: type[_Record]) -> _Record | None:
        data = self._read_bytes(path)
        if data is None:
            return None
        try:
            return record.model_validate_json(data)
        except ValidationError as error:
            raise self._damaged(path, error.errors()[0]["msg"]) from error

    def _damaged(self, path: PurePosixPath, reason: str) -> StoreError:
        """For a file whose loss costs nothing but a job: what it says is found again by materializing its asset."""
        asset = path.relative_to(self._base).parts[0].removesuffix(EVALUATION_SUFFIX)
        return StoreError(f"{self._address(path)} is damaged: {reason}; delete this file and materialize {asset} again")

    def _address(self, path: PurePosixPath) -> str:
        return str(path) if self.is_local else str(self._fs.unstrip_protocol(str(path)))

    def _read_bytes(self, path: PurePosixPath) -> bytes | None:
        with self._errors(str(path)):
            try:
                self._fs.invalidate_cache()
                return bytes(self._fs.cat_file(str(path)))
            except FileNotFoundError:
                return None

    def _write(self, path: PurePosixPath, data: bytes) -> None:
        with self._errors(str(path)):
            if not self.is_local:
                self._fs.pipe_file(str(path), data)
                return
            local = Path(path)
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = local.with_name(f".{local.name}-{uuid.uuid4().hex[:8]}")
            try:
                _write_durably(temporary, data)
                os.replace(temporary, local)
            finally:
                temporary.unlink(missing_ok=True)
            _fsync(local.parent)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            raise StoreError(f"no permission for {path} in the store {self.root}; what was published before is "
                             "untouched") from error
        except OSError as error:
            raise StoreError(f"the store {self.root} failed at {path}: {error.strerror or error}; what was published "
                             "before is untouched") from error


_REBUILD = "materialize it again with force to replace it"


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileEntry(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _relative_files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _dump(record: Spec) -> bytes:
    value: Any = record.model_dump(mode="json")
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
