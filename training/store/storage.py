"""Bytes under a root, on a local disk or in an object store: one set of operations, one kind of error.

When a method returns, what it wrote is on the disk, or acknowledged by the object store. Local records are written with
`os`, because fsspec does not wait for the disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import fsspec

from training.errors import StoreError
from training.store.objects import Upload, abort_upload, put_if_absent, unfinished_uploads

MAX_RECORD_BYTES = 64 * 2**20  # a manifest of 300,000 files
DELETED = ".deleted-"  # how the name of a folder begins while it is being removed
_PROBE = ".conditional-create"  # object that tells whether the store can create on condition
_CHUNK = 4 << 20


class Measure(NamedTuple):
    """Size of a file or of all files below a folder, and the last change of any of them, in seconds since the epoch."""

    bytes: int
    changed: float


class Storage:
    """The files under a root.

    Args:
        root: A local folder or a URL that fsspec understands.

    Attributes:
        root: As given; a local folder is absolute.
        base: The path that all paths of this storage begin with.
        is_local: Whether paths are paths of this machine.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened. Every method raises it for what fails in the
            storage: no room, no permission, no connection.
    """

    def __init__(self, root: str) -> None:
        try:
            # Another process may have written since: what was listed once is never answered with again.
            self._fs, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"the store {root} cannot be opened: {error}; set GATEHOUSE_STORE to a folder or to a URL "
                "such as s3://bucket/prefix"
            ) from error

        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self.is_local = "file" in protocols
        self.root = str(path) if self.is_local else root
        self.base = PurePosixPath(path)
        self._is_s3 = "s3" in protocols
        self._creates_once = False  # not tried yet

        self._failures: tuple[type[Exception], ...] = (OSError,)
        if self._is_s3:  # s3fs has imported both; a local store never needs them
            from aiohttp import ClientError
            from botocore.exceptions import BotoCoreError

            self._failures = (OSError, BotoCoreError, ClientError)

    def address(self, path: PurePosixPath) -> str:
        """A path for people: as it is on a local disk, else a URL."""
        return str(path) if self.is_local else str(self._fs.unstrip_protocol(str(path)))

    # Reading

    def names(self, folder: PurePosixPath) -> list[str]:
        """Names in a folder, in no order; empty when there is no such folder."""
        with self.errors(folder):
            try:
                if self.is_local:
                    return os.listdir(folder)
                return [PurePosixPath(path).name for path in self._fs.ls(str(folder), detail=False)]
            except FileNotFoundError:
                return []

    def exists(self, path: PurePosixPath) -> bool:
        """Whether there is such a file or folder now."""
        with self.errors(path):
            if not self.is_local:
                return bool(self._fs.exists(str(path)))
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def read(self, path: PurePosixPath) -> bytes | None:
        """A record's bytes as they are now, None when there is no such file.

        Raises:
            StoreError: It is larger than any record, or cannot be read.
        """
        with self.errors(path):
            try:
                if self.is_local:
                    return read_bounded(Path(path))
                return _record(bytes(self._fs.cat_file(str(path), start=0, end=MAX_RECORD_BYTES + 1)))
            except FileNotFoundError:
                return None
            except OSError as error:
                if self.is_local or error.errno != errno.EINVAL:
                    raise
                return b""  # S3 refuses to read a range of an empty object

    def chunks(self, path: PurePosixPath) -> Iterator[bytes]:
        """A file's bytes, a few megabytes at a time."""
        with self.errors(path), self._fs.open(str(path), "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def files(self, folder: PurePosixPath) -> dict[str, Measure]:
        """Every file below a folder, by its path relative to it, with `/`."""
        with self.errors(folder):
            if self.is_local:
                return {name: _measured(Path(folder) / name) for name in relative_files(Path(folder))}
            objects = self._fs.find(str(folder), detail=True)
            return {
                str(PurePosixPath(path).relative_to(folder)): Measure(int(info["size"]), _changed(info))
                for path, info in objects.items()
            }

    def measure(self, path: PurePosixPath) -> Measure:
        """Size and last change of a file, or of everything below a folder."""
        measures = list(self.files(path).values())
        if self.is_local:  # an object store has no folders, and a local one changes when a file in it is removed
            with self.errors(path):
                itself = _measured(Path(path))
                measures.append(itself if Path(path).is_file() else Measure(0, itself.changed))
        return Measure(
            sum(measure.bytes for measure in measures),
            max((measure.changed for measure in measures), default=time.time()),
        )

    # Writing

    def write(self, path: PurePosixPath, data: bytes) -> None:
        """Make or replace a file; a reader sees the old bytes or the new ones."""
        with self.errors(path):
            if self.is_local:
                with _beside(Path(path), data) as temporary:
                    os.replace(temporary, path)
            else:
                self._fs.pipe_file(str(path), data)

    def create(self, path: PurePosixPath, data: bytes) -> bool:
        """Make a file that does not exist yet; return whether this call made it.

        Of several processes that try at once, one succeeds.

        Raises:
            StoreError: The object store cannot create an object on condition.
        """
        with self.errors(path):
            if self.is_local:
                try:
                    with _beside(Path(path), data) as temporary:
                        os.link(temporary, path)  # unlike a rename it fails where the name exists
                except FileExistsError:
                    return False
                return True
            self._require_creates_once()
            # When an answer gets lost, the client tries again by itself and is refused because of its own object.
            return put_if_absent(self._fs, str(path), data) or self.read(path) == data

    def _require_creates_once(self) -> None:
        """Refuse a service that replaces an object where it should have refused: tried once, by a probe object."""
        if self._creates_once:
            return
        try:  # where the probe exists from before, the first try is refused already
            tried = (put_if_absent(self._fs, str(self.base / _PROBE), b"") for _ in range(2))
            self._creates_once = not all(tried)
        except NotImplementedError:
            self._creates_once = False
        if not self._creates_once:
            raise StoreError(
                f"the object store {self.root} does not create objects on condition (S3's `If-None-Match: "
                "*`), so two writers could mix their files: nothing was written. Set GATEHOUSE_STORE to a "
                "service that does, or to a folder"
            )

    def remove(self, path: PurePosixPath) -> None:
        """Remove a file; it may be gone already."""
        with self.errors(path):
            if not self.is_local:
                if self.exists(path):
                    self._fs.rm_file(str(path))
                return
            try:
                os.unlink(path)
            except FileNotFoundError:
                return
            fsync(Path(path).parent)

    def remove_folder(self, folder: PurePosixPath, first: str) -> None:
        """Remove a folder so that a reader sees all of it, or sees that it is gone.

        A local folder loses its name first; in an object store the object `first` is removed before the others.
        """
        with self.errors(folder):
            if self.is_local:
                hidden = Path(folder)
                if not hidden.name.startswith("."):
                    hidden = hidden.with_name(f"{DELETED}{hidden.name}-{uuid.uuid4().hex[:8]}")
                    os.rename(folder, hidden)
                    fsync(hidden.parent)
                shutil.rmtree(hidden)
                return
            self.remove(folder / first)
            with suppress(FileNotFoundError):
                self._fs.rm(str(folder), recursive=True)

    def upload(self, source: Path, path: PurePosixPath) -> None:
        """Copy a file of this machine to the storage."""
        with self.errors(path):
            self._fs.put_file(str(source), str(path))

    def download(self, path: PurePosixPath, target: Path) -> None:
        """Copy a file from the storage to this machine."""
        with self.errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(str(path), str(target))

    def unfinished_uploads(self) -> list[Upload]:
        """Multipart uploads that were cut short; on a local disk there are none."""
        with self.errors(self.base):
            return unfinished_uploads(self._fs, self.base) if self._is_s3 else []

    def abort(self, upload: Upload) -> None:
        """Free what an unfinished upload holds."""
        with self.errors(upload.path):
            abort_upload(self._fs, upload)

    @contextmanager
    def errors(self, path: PurePosixPath) -> Iterator[None]:
        """Turn what fails at a path into a StoreError that names it."""
        try:
            yield
        except PermissionError as error:
            raise StoreError(
                f"no permission for {self.address(path)} in the store {self.root}; what was published "
                "before is untouched"
            ) from error
        except self._failures as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(
                f"the store {self.root} failed at {self.address(path)}: {reason}; what was published "
                "before is untouched"
            ) from error


def read_bounded(path: Path) -> bytes:
    """The bytes of a record. Pipes and devices, which would never end, and files of another size are refused.

    Raises:
        OSError: It does not exist, cannot be read, or is no record.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RECORD_BYTES:
        raise _no_record()
    return path.read_bytes()


def _record(data: bytes) -> bytes:
    if len(data) > MAX_RECORD_BYTES:
        raise _no_record()
    return data


def _no_record() -> OSError:
    return OSError(errno.EFBIG, f"it is no file of at most {MAX_RECORD_BYTES >> 20} MB")


def relative_files(folder: Path) -> list[str]:
    """Every file below a folder, by its path relative to it, with `/`."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def make_folder(path: Path) -> None:
    """Make a folder and the folders above it, and wait until the disk has their names."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        fsync(folder.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """A hidden file beside a path that holds the data. What the caller does with it is on the disk afterwards."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        write_durably(temporary, data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def _measured(path: Path) -> Measure:
    status = os.lstat(path)
    return Measure(status.st_size, max(status.st_mtime, status.st_ctime))


def _changed(info: dict[str, object]) -> float:
    """When an object was written. One without a date counts as new, so that nobody takes it for abandoned."""
    moment = info.get("LastModified")
    return float(moment.timestamp()) if hasattr(moment, "timestamp") else time.time()
