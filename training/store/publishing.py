"""How a folder becomes a version: a rename on a local disk, the manifest as the last object in an object store."""

from __future__ import annotations

import calendar
import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from training.errors import StoreError
from training.specs.artifacts import Manifest
from training.store.records import sealed
from training.store.storage import Storage, fsync, make_folder, write_durably

MANIFEST = "manifest.json"
CLAIM = ".claim"
_STAMP = "%Y%m%dT%H%M%S"
_UMASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)
_VERSION = re.compile(r"(\d{8}T\d{6})-")


def next_version(identity: str, names: Iterable[str]) -> str:
    """A name for a new version that sorts after every existing name, even when the clock was set back.

    Args:
        identity: The version's; its first eight characters end the name.
        names: Names of the existing versions, and of those that others are making.
    """
    moment = max([int(time.time()), *(_moment(name) + 1 for name in names)])
    return f"{time.strftime(_STAMP, time.gmtime(moment))}-{identity[:8]}"


def _moment(name: str) -> int:
    """Seconds since the epoch of a version's name, 0 of any other name."""
    match = _VERSION.match(name)
    try:
        return calendar.timegm(time.strptime(match.group(1), _STAMP)) if match else 0
    except ValueError:  # a folder that nobody published
        return 0


def publish_on_disk(source: Path, versions: Path, draft: Manifest) -> Manifest:
    """Publish a folder beside the other versions of its asset.

    Args:
        source: The finished files; gone afterwards.
        versions: Folder of the asset's versions.
        draft: Complete but for the version.

    Returns:
        The whole manifest.

    Raises:
        OSError: It could not be published; the folder is where it was.
    """
    make_folder(versions)
    staged = versions / f".{draft.identity[:8]}-{uuid.uuid4().hex[:8]}"
    put_back = _stage(source, staged)
    try:
        _share(staged, versions)
        _sync(staged)
        whole = _commit(staged, versions, draft)
    except BaseException:
        put_back()
        raise

    fsync(versions)
    shutil.rmtree(source, ignore_errors=True)
    return whole


def _stage(source: Path, staged: Path) -> Callable[[], None]:
    """Move or copy a folder; return a function that undoes it."""
    try:
        source.rename(staged)
    except OSError as error:
        if error.errno != errno.EXDEV:  # another filesystem: copied below
            raise
    else:
        return lambda: _return(staged, source)

    def remove_copy() -> None:
        shutil.rmtree(staged, ignore_errors=True)

    try:
        shutil.copytree(source, staged)
    except BaseException:
        remove_copy()
        raise
    return remove_copy


def _return(staged: Path, source: Path) -> None:
    with suppress(OSError):  # a folder that cannot be moved back stays, whole, where it is
        (staged / MANIFEST).unlink(missing_ok=True)
        staged.rename(source)


def _share(staged: Path, versions: Path) -> None:
    """Give every file and folder the mode that the umask gives a new one, and the group of a store that has its own.

    Libraries write some files for their owner alone, and a moved folder keeps the group that it was made with.
    """
    mode = 0o666 & ~_umask()
    shared = versions.stat()
    inherited = shared.st_mode & stat.S_ISGID

    for path in (staged, *staged.rglob("*")):
        if path.is_symlink():
            continue
        if inherited and path.stat().st_gid != shared.st_gid:
            os.chown(path, -1, shared.st_gid)
        path.chmod(mode if path.is_file() else mode | (mode & 0o444) >> 2 | inherited)


def _umask() -> int:
    """The process's umask. Linux lists it; elsewhere it can only be read by changing it for a moment."""
    try:
        listed = _UMASK.search(Path("/proc/self/status").read_text())
    except OSError:
        listed = None
    if listed:
        return int(listed[1], 8)

    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        fsync(path)


def _commit(staged: Path, versions: Path, draft: Manifest) -> Manifest:
    """Give the staged folder its name, once everything in it is on the disk."""
    while True:
        names = [path.name for path in versions.iterdir()]
        whole = draft.model_copy(update={"version": next_version(draft.identity, names)})
        write_durably(staged / MANIFEST, sealed(whole))
        fsync(staged)
        try:
            staged.rename(versions / whole.version)
            return whole
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Another process has published under this name: take the next one.


def publish_objects(storage: Storage, source: Path, versions: PurePosixPath, draft: Manifest) -> Manifest:
    """Upload a folder beside the other versions of its asset.

    The claim, created once, gives this writer alone the version's name. Its manifest makes the version exist.

    Args:
        storage: The object store.
        source: The finished files.
        versions: Path of the asset's versions.
        draft: Complete but for the version.

    Returns:
        The whole manifest.

    Raises:
        StoreError: It could not be published.
    """
    token = uuid.uuid4().hex.encode()
    while True:
        whole = draft.model_copy(update={"version": next_version(draft.identity, storage.names(versions))})
        target = versions / whole.version
        if storage.create(target / CLAIM, token):
            break

    try:
        for name in whole.files:
            storage.upload(source / name, target / name)
        _require_all(storage, target, whole, token)
    except Exception:
        with suppress(StoreError):  # objects without a manifest are no version, and `gatehouse gc` removes them
            storage.remove_folder(target, first=MANIFEST)
        raise

    if not storage.create(target / MANIFEST, sealed(whole)):
        raise StoreError(
            f"{storage.address(target / MANIFEST)} was written by somebody else while {whole.asset} was "
            "published; start it again"
        )
    return whole


def _require_all(storage: Storage, target: PurePosixPath, manifest: Manifest, token: bytes) -> None:
    """Refuse to go on unless everything that was uploaded exists, and nobody took the upload for abandoned."""
    actual = {name: measure.bytes for name, measure in storage.files(target).items() if name != CLAIM}
    expected = {name: entry.bytes for name, entry in manifest.files.items()}
    if actual != expected or storage.read(target / CLAIM) != token:
        differing = sorted({name for name, _ in actual.items() ^ expected.items()}) or [CLAIM]
        raise StoreError(
            f"{storage.address(target)} does not hold what was uploaded there ({', '.join(differing)} "
            f"differ); start {manifest.asset} again"
        )
