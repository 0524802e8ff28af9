"""Bytes under a root, on a local disk or in an object store: one set of operations, one kind of error."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec

from training.errors import StoreError


class Storage:
    """The files under a root.

    Args:
        root: A local folder or a URL that fsspec understands.

    Attributes:
        root: The same; a local folder is absolute.
        base: What paths start with.
        is_local: Whether paths are paths of this machine.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened. Every method raises it for what fails in the
            storage: no room, no permission, no connection.
    """

    def __init__(self, root: str) -> None:
        try:
            self._fs, path = fsspec.core.url_to_fs(root)
        except (ValueError, ImportError) as error:
            raise StoreError(f"the store {root} cannot be opened: {error}; set GATEHOUSE_STORE to a folder or to a URL "
                             "such as s3://bucket/prefix") from error
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self.is_local = "file" in protocols
        self.root = str(path) if self.is_local else root
        self.base = PurePosixPath(path)
        self._failures: tuple[type[Exception], ...] = (OSError,)
        if "s3" in protocols:
            from botocore.exceptions import BotoCoreError  # s3fs has imported it; a local store never needs it

            self._failures = (OSError, BotoCoreError)

    def address(self, path: PurePosixPath) -> str:
        """A path for people: as it is on a local disk, else a URL."""
        return str(path) if self.is_local else str(self._fs.unstrip_protocol(str(path)))

    def names(self, folder: PurePosixPath) -> list[str]:
        """Names in a folder, empty when there is no such folder."""
        with self.errors(folder):
            self._fs.invalidate_cache()
            if not self._fs.exists(str(folder)):
                return []
            return [PurePosixPath(path).name for path in self._fs.ls(str(folder), detail=False)]

    def exists(self, path: PurePosixPath) -> bool:
        """Whether there is such a file or folder now."""
        with self.errors(path):
            self._fs.invalidate_cache()
            return bool(self._fs.exists(str(path)))

    def read(self, path: PurePosixPath) -> bytes | None:
        """A file's bytes as they are now, None when there is no such file."""
        with self.errors(path):
            try:
                self._fs.invalidate_cache()
                return bytes(self._fs.cat_file(str(path)))
            except FileNotFoundError:
                return None

    def write(self, path: PurePosixPath, data: bytes) -> None:
        """Make or replace a file; a reader sees the old bytes or the new ones."""
        with self.errors(path):
            if self.is_local:
                _replace_durably(Path(path), data)
            else:
                self._fs.pipe_file(str(path), data)

    def remove(self, path: PurePosixPath) -> None:
        """Remove a file; it may be gone already."""
        if self.exists(path):
            with self.errors(path):
                self._fs.rm_file(str(path))

    def upload(self, source: Path, path: PurePosixPath) -> None:
        """Copy a file of this machine to the storage."""
        with self.errors(path):
            self._fs.put_file(str(source), str(path))

    def download(self, path: PurePosixPath, target: Path) -> None:
        """Copy a file from the storage to this machine."""
        with self.errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(str(path), str(target))

    @contextmanager
    def errors(self, path: PurePosixPath) -> Iterator[None]:
        """Turn what fails at a path into a StoreError that names it."""
        try:
            yield
        except PermissionError as error:
            raise StoreError(f"no permission for {self.address(path)} in the store {self.root}; what was published "
                             "before is untouched") from error
        except self._failures as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"the store {self.root} failed at {self.address(path)}: {reason}; what was published "
                             "before is untouched") from error


def relative_files(folder: Path) -> list[str]:
    """Every file below a folder, by its path relative to it, with `/`."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


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


def _replace_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        write_durably(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)
