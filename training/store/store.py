"""The store: immutable versions of artifacts, their certificates, and which version is promoted.

Layout, under `<root>/<recipe>/<asset>/`::

    versions/<version>/...             the files of one version
    versions/<version>/manifest.json   written last; without it the version does not exist
    certificates/<version>.json        the newest judgement of that version
    waivers/<version>/<gate>.json      a gate that may refuse it until a day
    adoptions/<version>/<identity>.json  another identity that it is found by, and the proof
    holds/<version>.json               why it is not to be promoted, though its gates passed
    promoted.json                      the version that downstream reads
    promotions/<time>-<version>.json   every promotion there was
    gate_reports/<version>.html, .md   the page of its newest judgement, and the card with the table
    links/<version>.json               where it is shown: MLflow run, Dagster run
    superseded/<version>.json          the judgement it was promoted with, while a newer one is being acted on
    links/promoted.json                the promotion that MLflow and Dagster show

The root is a local folder or an object store's URL such as `s3://bucket/prefix`. A reader sees a whole version or none:
on a local disk a finished folder is renamed into place, in an object store the manifest is the last object written.
A name in `versions/` that begins with a dot is a version in the making, or one that a killed process left unfinished;
`gatehouse gc` removes the latter.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath

from training.errors import InputRefused, StoreError
from training.specs.artifacts import (
    Adoption,
    Certificate,
    FileEntry,
    InputRecord,
    Manifest,
    Promotion,
    Waiver,
    content_digest,
)
from training.specs.job import EVALUATION_SUFFIX
from training.store.publishing import MANIFEST as MANIFEST
from training.store.publishing import publish_objects, publish_on_disk
from training.store.records import NAME, Records, sealed
from training.store.storage import relative_files
from training.store.validity import Terms, explain_unpromoted, lets_pass, require_valid

_SHOWN_VERSIONS = 5


class Store(Records):
    """One recipe's artifacts.

    Args:
        root: A local folder or a URL that fsspec understands.
        recipe: Name of the recipe; different recipes never share versions.
        cache: Local folder for copies of remote versions; unused with a local root.
        named: How a command names the recipe after `-r`, such as a path; by default its name.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened.
    """

    def __init__(self, root: str, recipe: str, cache: Path | None = None, named: str = "") -> None:
        super().__init__(root, recipe, named)
        self.cache = cache
        # What `file_entry` gave, with the status that the file had then.
        self._entries: dict[Path, tuple[tuple[int, ...], FileEntry]] = {}

    # Reading

    def assets(self) -> list[str]:
        """Every asset that the recipe has ever had, in the order of their names; evaluations are left out."""
        names = {name.removesuffix(EVALUATION_SUFFIX) for name in self.storage.names(self.base)}
        return sorted(name for name in names if NAME.fullmatch(name))

    def versions(self, asset: str) -> list[str]:
        """Published versions of an asset, oldest first."""
        folder = self._path(asset, "versions")
        return sorted(
            name
            for name in self.storage.names(folder)
            if NAME.fullmatch(name) and self.storage.exists(folder / name / MANIFEST)
        )

    def manifest(self, asset: str, version: str) -> Manifest:
        """The manifest of one version.

        Raises:
            StoreError: There is no such version, or its manifest is damaged.
        """
        path = self.place(asset, version) / MANIFEST
        manifest = self._read(path, Manifest)
        if manifest is None:
            newest = ", ".join(self.versions(asset)[-_SHOWN_VERSIONS:]) or "none"
            raise StoreError(f"{asset} has no version {version} in {self.root}; its newest are: {newest}")

        if (manifest.asset, manifest.version) != (asset, version):
            raise self._damaged(path, f"it belongs to {manifest.asset} {manifest.version}")
        if outside := [name for name in manifest.files if name.startswith("/") or ".." in PurePosixPath(name).parts]:
            raise self._damaged(path, f"it names {outside[0]}, outside of the version's folder")
        return manifest

    def find(self, asset: str, identity: str) -> Manifest | None:
        """The newest version of an asset with this identity, or the newest one that was adopted under it.

        Raises:
            StoreError: A record that decides about it is damaged, or vouches for other bytes or code.
        """
        versions = self.versions(asset)
        for version in reversed(versions):
            manifest = self.manifest(asset, version)
            if manifest.identity == identity:
                return manifest
        for version in reversed(self.adopted(asset)):
            adoption = self.adoption(asset, version, identity) if version in versions else None
            if adoption is not None:
                manifest = self.manifest(asset, version)
                self.require_adopted(adoption, manifest)
                return manifest
        return None

    def require_adopted(self, adoption: Adoption, manifest: Manifest) -> None:
        """Refuse an adoption of other bytes, or of what other code made, than its version has.

        Raises:
            StoreError: It is not about this version as it is.
        """
        if (adoption.digest, adoption.made_as, adoption.made_by) != (
            manifest.digest,
            manifest.identity,
            manifest.fingerprint,
        ):
            path = self._adoption(adoption.asset, adoption.version, adoption.identity)
            raise self._damaged(path, f"it vouches for content {adoption.digest[:12]} made as {adoption.made_as[:12]}")

    def latest(self, asset: str) -> Manifest | None:
        """The newest version of an asset, promoted or not."""
        versions = self.versions(asset)
        return self.manifest(asset, versions[-1]) if versions else None

    def uri(self, asset: str, version: str) -> str:
        """Address of a version's folder, for people."""
        return self.storage.address(self.place(asset, version))

    def place(self, asset: str, version: str) -> PurePosixPath:
        """Where a version's files are in the storage."""
        return self._path(asset, "versions", version)

    def folder(self, asset: str, version: str) -> Path:
        """A local folder with a version's files; a remote version is copied to the cache first.

        Raises:
            StoreError: There is no such version, or it cannot be copied.
            InputRefused: What was copied is not what was published.
        """
        return Path(self.place(asset, version)) if self.is_local else self._local(self.manifest(asset, version))[0]

    def verified_folder(self, asset: str, version: str, digest: str) -> Path:
        """As `folder`, after every byte was compared with the manifest.

        A damaged copy of a remote version is replaced by a new one.

        Args:
            asset: The asset.
            version: One of its versions.
            digest: The content digest that the version is expected to have.

        Raises:
            StoreError: There is no such version, or it cannot be copied.
            InputRefused: A file is missing, was added or changed, or the content is not the expected one.
        """
        manifest = self.manifest(asset, version)
        actual = content_digest(manifest.files)
        if actual != manifest.digest or manifest.digest != digest:
            raise InputRefused(
                f"{asset} {version}: its content digest is {actual[:12]}, not {digest[:12]} as expected; "
                f"{self.remake(manifest)}"
            )

        folder, verified = self._local(manifest)
        problem = "" if verified else defect(folder, manifest)
        if problem and not self.is_local:
            _discard(folder)
            folder, problem = self._local(manifest)[0], ""  # a fresh copy is verified, or refused, while it is made
        if problem:
            raise InputRefused(f"{asset} {version}: {problem}; {self.remake(manifest)}")
        return folder

    def verified_file(self, manifest: Manifest, name: str, folder: Path) -> Path:
        """One file of a version, after its bytes were compared with the manifest; nothing else of it is read.

        Args:
            manifest: The version's.
            name: Path below its folder, one of the manifest's.
            folder: Where the file of a remote version is copied to.

        Raises:
            StoreError: It cannot be read.
            InputRefused: It is missing or has changed since it was published.
        """
        place = self.place(manifest.asset, manifest.version) / name
        path = Path(place) if self.is_local else folder / name
        with self.storage.errors(place):
            if not self.is_local:
                self.storage.download(place, path)
            is_there = path.is_file()
            if is_there and file_entry(path) == manifest.files[name]:
                return path
        problem = "has changed since it was published" if is_there else "is missing"
        raise InputRefused(f"{self.storage.address(place)} {problem}; {self.remake(manifest)}")

    def fault_of(self, manifest: Manifest, names: Sequence[str]) -> str:
        """What is wrong with some files of a version; empty when they are what was published.

        Their sizes are read from the storage each time. Their bytes are read once, and again after the file was
        touched.

        Args:
            manifest: The version's.
            names: Paths below its folder, all of them in the manifest.
        """
        place = self.place(manifest.asset, manifest.version)
        with self.storage.errors(place):
            sizes = {name: measure.bytes for name, measure in self.storage.files(place).items()}
            for name in names:
                address = self.storage.address(place / name)
                if name not in sizes:
                    return f"{address} is missing"
                if sizes[name] != manifest.files[name].bytes:
                    return f"{address} has changed since it was published"

            folder = self._local(manifest)[0]
            if any(self._entry_once(folder / name) != manifest.files[name] for name in names) and not self.is_local:
                _discard(folder)
                folder = self._local(manifest)[0]
            changed = [name for name in names if self._entry_once(folder / name) != manifest.files[name]]
        return f"{folder / changed[0]} has changed since it was published" if changed else ""

    def _entry_once(self, path: Path) -> FileEntry:
        """Size and SHA-256 of a file, read again only when it was touched."""
        status = path.stat()
        # The time of change as well, because a program can set the time of modification back.
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        cached = self._entries.get(path)
        if cached is None or cached[0] != stamp:
            cached = self._entries[path] = stamp, file_entry(path)
        return cached[1]

    def _local(self, manifest: Manifest) -> tuple[Path, bool]:
        """A version's folder on this machine, and whether it was verified just now because it was just copied.

        Raises:
            StoreError: It cannot be copied.
            InputRefused: What was copied is not what was published.
        """
        source = self.place(manifest.asset, manifest.version)
        if self.is_local:
            return Path(source), False
        target = self._copy(manifest)
        if target.exists():
            return target, False

        # A hidden folder gets the name once it is whole. Two processes that copy at once do not meet.
        partial = _hidden(target)
        try:
            for name in [*manifest.files, MANIFEST]:
                self.storage.download(source / name, partial / name)
            if problem := defect(partial, manifest):
                raise InputRefused(f"{manifest.asset} {manifest.version}: {problem}; {self.remake(manifest)}")
            try:
                partial.rename(target)
            except OSError:
                if not target.exists():  # where it does, another process copied it first
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target, True

    def remake(self, manifest: Manifest) -> str:
        """What to do about a version whose files are not what was published, as the end of a sentence."""
        built = manifest.asset.removesuffix(EVALUATION_SUFFIX)  # an evaluation is made when its asset is built
        return (
            f"delete {self.uri(manifest.asset, manifest.version)}, then `gatehouse run -r {self.named} --select "
            f"{built}` makes it anew"
        )

    def _copy(self, manifest: Manifest) -> Path:
        """Where the cache keeps a version; the digest is part of it, so that a remade one gets a folder of its own."""
        if self.cache is None:
            raise StoreError(f"{self.root} is remote and no local cache folder was configured")
        return self.cache / self.recipe / manifest.asset / f"{manifest.version}-{manifest.digest[:12]}"

    def require_promoted(
        self,
        asset: str,
        version: str,
        digest: str,
        certificate_digest: str = "",
        today: date | None = None,
        terms: Callable[[], Terms] | None = None,
    ) -> Certificate:
        """Refuse a version unless it is promoted, its certificate holds and vouches for these very bytes.

        The rule is in `training.store.validity`.

        Args:
            asset: The asset.
            version: One of its versions.
            digest: The content digest that the version is expected to have.
            certificate_digest: The certificate that a job was planned on; empty when nothing was planned yet.
            today: The day for which waivers must hold, UTC.
            terms: What the recipe asks for today; a job does not know it.

        Returns:
            The certificate.

        Raises:
            InputRefused: With the reason, the gate that refused it where there is one, and what to do.
        """
        return require_valid(self, asset, version, digest, certificate_digest, today or utc_today(), terms)

    def explain_unpromoted(self, asset: str, wanted: str | None = None, today: date | None = None) -> str:
        """Why nothing (or not the wanted version) of an asset is promoted, in one sentence that says what to do."""
        return explain_unpromoted(self, asset, wanted, today or utc_today())

    def inherited_waivers(self, manifest: Manifest) -> tuple[Waiver, ...]:
        """The waivers that a version's inputs rest on, by their certificates as they are now, each once."""
        waivers: dict[Waiver, None] = {}
        for used in manifest.inputs.values():
            if certificate := self._standing(used):
                waivers |= dict.fromkeys((*certificate.waivers, *certificate.inherited))
        return tuple(waivers)

    def unfounded(self, manifest: Manifest) -> tuple[str, ...]:
        """The versions that a version was made from and that do not pass by today's certificates, `asset version`."""
        return tuple(
            f"{used.asset} {used.version}"
            for used in manifest.inputs.values()
            if (certificate := self._standing(used)) is None or not certificate.passed
        )

    def stand_in(self, used: InputRecord) -> str:
        """The version that a version was made from, or the newest one of equal content when that is gone.

        Empty when neither exists.
        """
        if self.storage.exists(self.place(used.asset, used.version) / MANIFEST):
            return used.version
        return next(
            (
                version
                for version in reversed(self.versions(used.asset))
                if self.manifest(used.asset, version).digest == used.digest
            ),
            "",
        )

    def _standing(self, used: InputRecord) -> Certificate | None:
        """Today's certificate of a version that another one was made from."""
        version = self.stand_in(used)
        return self.certificate(used.asset, version or used.version)

    # Writing

    def publish(self, source: Path, manifest: Manifest) -> Manifest:
        """Publish a folder as a new version; the folder is gone afterwards.

        Args:
            source: Folder with the finished files. On the filesystem of a local root it is renamed and not copied.
            manifest: Complete but for `version`, `digest` and `files`, which are filled in here.

        Returns:
            The whole manifest.

        Raises:
            StoreError: No room, no permission, no connection, or no file. Nothing that was published before is
                touched, and the folder is where it was.
        """
        versions = self.base / manifest.asset / "versions"
        with self.storage.errors(versions):
            files = {name: file_entry(source / name) for name in sorted(relative_files(source)) if name != MANIFEST}
            if not files:
                raise StoreError(f"{manifest.asset}: {source} holds no file to publish")

            # From here on every reader finds a file that changes.
            draft = manifest.model_copy(update={"files": files, "digest": content_digest(files)})
            if self.is_local:
                return publish_on_disk(source, Path(versions), draft)
            whole = publish_objects(self.storage, source, versions, draft)
            self._keep_copy(source, whole)
            return whole

    def _keep_copy(self, source: Path, manifest: Manifest) -> None:
        """Put what was published into the cache, so that the next stage on this machine need not fetch it."""
        if self.cache is not None:
            copy = self._copy(manifest)
            with suppress(OSError):  # no room, or another filesystem
                copy.parent.mkdir(parents=True, exist_ok=True)
                (source / MANIFEST).write_bytes(sealed(manifest))
                source.rename(copy)
        shutil.rmtree(source, ignore_errors=True)

    # Promoting

    def promote(self, promotion: Promotion, today: date | None = None) -> None:
        """Move the pointer of an asset.

        Args:
            promotion: The new pointer.
            today: The day for which waivers must hold, UTC.

        Raises:
            InputRefused: The version's certificate is missing, failed, rests on a waiver that has expired, or vouches
                for other bytes.
        """
        certificate = self.certificate(promotion.asset, promotion.version)
        manifest = self.manifest(promotion.asset, promotion.version)
        # Checked here as well as by the gates: the pointer moves by no other way than this method.
        if (
            certificate is None
            or not lets_pass(certificate, today or utc_today())
            or certificate.digest != promotion.certificate_digest
            or (certificate.asset, certificate.version) != (promotion.asset, promotion.version)
            or not certificate.artifact_digest == promotion.digest == manifest.digest
        ):
            raise InputRefused(self.explain_unpromoted(promotion.asset, wanted=promotion.version, today=today))
        self._point(promotion)


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileEntry(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def defect(folder: Path, manifest: Manifest) -> str:
    """What differs between a local folder and a version's manifest, reading every byte; empty when nothing does."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"the file {name} is missing"
        if file_entry(path) != entry:
            return f"the file {name} has changed since it was published"
    extra = set(relative_files(folder)) - set(manifest.files) - {MANIFEST}
    return f"{', '.join(sorted(extra))} was added after publishing" if extra else ""


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")


def _discard(folder: Path) -> None:
    """Remove a damaged copy. A process that reads it at this moment keeps the files that it has open."""
    hidden = _hidden(folder)
    try:
        folder.rename(hidden)
    except FileNotFoundError:  # another process discarded it first
        return
    except OSError as error:
        raise StoreError(f"{folder} is a damaged copy and cannot be replaced: {error.strerror}; delete it") from error
    shutil.rmtree(hidden, ignore_errors=True)


def utc_today() -> date:
    """The day that decides whether a waiver still holds."""
    return datetime.now(UTC).date()
