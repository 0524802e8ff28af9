"""The store: immutable versions of artifacts, their certificates, and which version is promoted.

Layout, under `<root>/<recipe>/<asset>/`::

    versions/<version>/...             the files of one version
    versions/<version>/manifest.json   written last; without it the version does not exist
    certificates/<version>.json        the newest judgement of that version
    waivers/<version>/<gate>.json      a gate that may refuse it until a day
    holds/<version>.json               why it is not to be promoted, though its gates passed
    promoted.json                      the version that downstream reads
    promotions/<time>-<version>.json   every promotion there was
    gate_reports/<version>.html, .md   the page of its newest judgement, and the card with the table
    links/<version>.json               where it is shown: MLflow run, Dagster run
    links/promoted.json                the promotion that MLflow and Dagster were told of

The root is a local folder or an object store's URL such as `s3://bucket/prefix`. A reader sees a whole version or none:
on a local disk a finished folder is renamed into place, in an object store the manifest is the last object written.
"""

from __future__ import annotations

import hashlib
import shutil
import time
import uuid
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath

from training.errors import InputRefused, StoreError
from training.records import Records, dump
from training.specs.artifacts import Certificate, FileEntry, Manifest, Promotion, Waiver, content_digest
from training.storage import fsync, relative_files, write_durably

MANIFEST = "manifest.json"


class Store(Records):
    """One recipe's artifacts.

    Args:
        root: A local folder or a URL that fsspec understands.
        recipe: Name of the recipe; different recipes never share versions.
        cache: Local folder for copies of remote versions; unused for a local root.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened.
    """

    def __init__(self, root: str, recipe: str, cache: Path | None = None) -> None:
        super().__init__(root, recipe)
        self.cache = cache

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

    def require_promoted(self, asset: str, version: str, digest: str, certificate_digest: str = "",
                         today: date | None = None) -> Certificate:
        """Refuse a version unless it is promoted and its certificate vouches for these very bytes.

        Args:
            certificate_digest: The certificate that a job was planned on; empty when nothing was planned yet.
            today: The day for which waivers must hold, UTC.

        Returns:
            The certificate.

        Raises:
            InputRefused: With the reason, the gate that refused it where there is one, and what to do.
        """
        pointer = self.promotion(asset)
        if pointer is None or pointer.version != version:
            raise InputRefused(self.explain_unpromoted(asset, wanted=version))
        certificate = self.certificate(asset, version)
        again = f"`gatehouse run -r {self.recipe} --select {asset}` judges it again and trains nothing"
        if certificate is None:
            raise InputRefused(f"{asset} {version} has no certificate: {again}")
        if (certificate.asset, certificate.version) != (asset, version):
            raise InputRefused(f"{asset} {version}: its certificate belongs to {certificate.asset} "
                               f"{certificate.version}: {again}")
        if certificate.digest != pointer.certificate_digest:
            raise InputRefused(f"{asset} {version}: its certificate is not the one it was promoted with (digest "
                               f"{certificate.digest[:12]}, promoted.json says {pointer.certificate_digest[:12]}): one "
                               f"of the two was changed since: {again}")
        if certificate_digest and certificate_digest != certificate.digest:
            raise InputRefused(f"{asset} {version}: the job was planned on the certificate {certificate_digest[:12]}, "
                               f"and its certificate is {certificate.digest[:12]}: it was judged again since, or "
                               "job.json was edited; start the asset again through Gatehouse")
        if not certificate.artifact_digest == pointer.digest == digest:
            raise InputRefused(f"{asset} {version}: its certificate vouches for content "
                               f"{certificate.artifact_digest[:12]} and promoted.json for {pointer.digest[:12]}, not "
                               f"for {digest[:12]}: {again}")
        if not certificate.passed or certificate.expired(today or utc_today()):
            raise InputRefused(self.explain_unpromoted(asset, wanted=version, today=today))
        return certificate

    def explain_unpromoted(self, asset: str, wanted: str | None = None, today: date | None = None) -> str:
        """Why nothing (or not the wanted version) of an asset is promoted, in one sentence that says what to do."""
        latest = self.latest(asset)
        if latest is None:
            return f"{asset} was never built: materialize {asset} first"
        version = wanted or latest.version
        certificate = self.certificate(asset, version)
        if certificate is None:
            return f"{asset} {version} was never judged: materialize {asset} so that its gates run"
        waived = {waiver.gate for waiver in certificate.waivers}
        refused = [verdict.reason for verdict in certificate.verdicts
                   if not verdict.passed and verdict.name not in waived]
        if refused:
            return f"{asset} {version} is not promoted; its gate refused it: {'; '.join(refused)}"
        if certificate.unfounded:
            return (f"{asset} {version} is not promoted: it was made from {', '.join(certificate.unfounded)}, which is "
                    "refused now; materialize that first")
        if expired := certificate.expired(today or utc_today()):
            return f"{asset} {version} rests on {_explain_expired(expired[0], asset, self.recipe)}"
        if hold := self.hold(asset, version):
            return (f"{asset} {version} is held back by {hold.author}: {hold.reason}; `gatehouse promote -r "
                    f"{self.recipe} {asset} {version}` promotes it")
        pointer = self.promotion(asset)
        if pointer is not None and pointer.version != version:
            return f"{asset} {version} is not promoted, {pointer.version} is: start again to work on that one"
        return f"{asset} {version} is not promoted: materialize {asset} to have it judged again"

    def inherited_waivers(self, manifest: Manifest) -> tuple[Waiver, ...]:
        """The waivers that what a version was made from rests on, by its certificates as they are now."""
        found: dict[Waiver, None] = {}
        for used in manifest.inputs.values():
            if certificate := self.certificate(used.asset, used.version):
                found |= dict.fromkeys((*certificate.waivers, *certificate.inherited))
        return tuple(found)

    def unfounded(self, manifest: Manifest) -> tuple[str, ...]:
        """The versions that a version was made from and that do not pass by their certificates as they are now."""
        return tuple(f"{used.asset} {used.version}" for used in manifest.inputs.values()
                     if (certificate := self.certificate(used.asset, used.version)) is None or not certificate.passed)

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
        write_durably(staged / MANIFEST, dump(manifest))
        for folder in {staged, *((staged / name).parent for name in manifest.files)}:
            fsync(folder)
        staged.rename(target)
        fsync(target.parent)

    def _publish_remote(self, source: Path, target: PurePosixPath, manifest: Manifest) -> None:
        for name in manifest.files:
            self._storage.upload(source / name, target / name)
        self._storage.write(target / MANIFEST, dump(manifest))
        if self.cache is not None:  # whoever reads it next on this machine need not fetch it
            copy = self._copy(manifest)
            copy.parent.mkdir(parents=True, exist_ok=True)
            (source / MANIFEST).write_bytes(dump(manifest))
            with suppress(OSError):  # another filesystem
                source.rename(copy)
        shutil.rmtree(source, ignore_errors=True)

    # Promoting

    def promote(self, promotion: Promotion, today: date | None = None) -> None:
        """Move the pointer of an asset.

        Raises:
            InputRefused: The version's certificate is missing, failed, rests on a waiver that has expired, or vouches
                for other bytes.
        """
        certificate = self.certificate(promotion.asset, promotion.version)
        manifest = self.manifest(promotion.asset, promotion.version)
        if (certificate is None or not certificate.passed or certificate.expired(today or utc_today())
                or certificate.digest != promotion.certificate_digest
                or (certificate.asset, certificate.version) != (promotion.asset, promotion.version)
                or not certificate.artifact_digest == promotion.digest == manifest.digest):
            raise InputRefused(self.explain_unpromoted(promotion.asset, wanted=promotion.version, today=today))
        self._point(promotion)


_REBUILD = "materialize it again with force to replace it"


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileEntry(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def utc_today() -> date:
    """The day that decides whether a waiver still holds."""
    return datetime.now(UTC).date()


def _explain_expired(waiver: Waiver, asset: str, recipe: str) -> str:
    then = "" if waiver.asset == asset else f", then `gatehouse run -r {recipe} --select {asset}`,"
    return (f"a waiver that has expired: {waiver.author} waived {waiver.gate} of {waiver.asset} {waiver.version} until "
            f"{waiver.until} ({waiver.reason}); renew it with `gatehouse waive -r {recipe} {waiver.asset} --version "
            f"{waiver.version} --gate {waiver.gate} --reason ... --until ...`{then} or build a version that passes")
