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
    """A name for a new version, later in order than every name there is, also where the clock was set back.

    Args:
        identity: Of the version; its first eight characters end the name.
        names: Of the versions there are, and of those that others are making.
    """
    moment = max([int(time.time()), *(_moment(name) + 1 for name in names)])
    return f"{time.strftime(_STAMP, time.gmtime(moment))}-{identity[:8]}"


def _moment(name: str) -> int:
    found = _VERSION.match(name)
    try:
        return calendar.timegm(time.strptime(found.group(1), _STAMP)) if found else 0
    except ValueError:  # a folder that nobody published
        return 0


def publish_on_disk(source: Path, versions: Path, draft: Manifest) -> Manifest:
    """Publish a folder beside the other versions of its asset.

    Args:
        draft: Complete but for the version.

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
    """Move or copy a folder; return what undoes it."""
    try:
        source.rename(staged)
    except OSError as error:
        if error.errno != errno.EXDEV:
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
    with suppress(OSError):  # what cannot be moved back is as good a start for a repair where it is
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
    """The process's umask. Linux tells it; elsewhere asking for it changes it for a moment."""
    try:
        told = _UMASK.search(Path("/proc/self/status").read_text())
    except OSError:
        told = None
    if told:
        return int(told[1], 8)
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
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another one has published under this name
                raise


def publish_objects(storage: Storage, source: Path, versions: PurePosixPath, draft: Manifest) -> Manifest:
    """Upload a folder beside the other versions of its asset.

    The claim, created once, gives this writer alone the version's name. Its manifest makes the version exist.

    Args:
        draft: Complete but for the version.

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
        with suppress(StoreError):  # what is left is no version
            storage.remove_folder(target, first=MANIFEST)
        raise
    if not storage.create(target / MANIFEST, sealed(whole)):
        raise StoreError(
            f"{storage.address(target / MANIFEST)} was written by somebody else while {whole.asset} was "
            "published; start it again"
        )
    return whole


def _require_all(storage: Storage, target: PurePosixPath, manifest: Manifest, token: bytes) -> None:
    """Whether what was uploaded is all there, and nobody took it for abandoned."""
    found = {name: measure.bytes for name, measure in storage.files(target).items() if name != CLAIM}
    wanted = {name: entry.bytes for name, entry in manifest.files.items()}
    if found != wanted or storage.read(target / CLAIM) != token:
        differing = sorted({name for name, _ in found.items() ^ wanted.items()}) or [CLAIM]
        raise StoreError(
            f"{storage.address(target)} does not hold what was uploaded there ({', '.join(differing)} "
            f"differ); start {manifest.asset} again"
        )
