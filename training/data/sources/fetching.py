"""Fetches remote files to this machine, and goes on where a connection or a killed job left off.

A file that was fetched has a record, written last: what has no record was not fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from io import BufferedRandom
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from training.data.sources.formats import shown_suffix
from training.data.sources.http_files import http_bytes
from training.data.sources.hub_files import from_hub
from training.data.sources.remote_files import Interrupted, RemoteFile
from training.data.sources.s3_files import s3_bytes
from training.data.sources.source_files import SourceFile
from training.errors import SourceError
from training.job.parts import Part, Pool, report_bytes
from training.specs.addresses import HUB, S3, scheme_of
from training.specs.base import digest_of
from training.specs.origin import Origin
from training.store.storage import fsync, write_durably

FETCHED = "fetched"
PART_BYTES = 64 * 2**20  # of files that are worked on as one part
FileT = TypeVar("FileT", SourceFile, RemoteFile)
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds between tries that bring nothing new
_DATA, _RECORD, _PARTIAL, _ON_DISK, _LOCK = "data", "record.json", "partial", "on_disk", "lock"
_SYNC_BYTES = 64 * 2**20
Opener = Callable[[RemoteFile, str, int], AbstractContextManager[tuple[int, Iterator[bytes]]]]


def fetched(file: RemoteFile, source: str, folder: Path, report: Callable[[int], None] = lambda _: None) -> SourceFile:
    """A remote file on this machine: fetched now, unless it was fetched before.

    Args:
        file: What to fetch.
        source: Name of its source, for messages.
        folder: Where the stage keeps what it fetched, across restarts.
        report: Is told how many bytes are there.

    Raises:
        SourceError: The file changed, is gone, may not be read, or does not come whole.
    """
    place = folder / _key(file)
    place.mkdir(parents=True, exist_ok=True)
    data = place / f"{_DATA}{_suffix(file.name)}"
    # On a cluster a process of a job that was killed may still be at the same file.
    with FileLock(place / _LOCK):
        if not (data.exists() and (place / _RECORD).is_file()):
            sha256 = _bring(file, source, data, report)
            fsync(place)
            write_durably(place / _RECORD, json.dumps(_record_of(file, sha256)).encode())
            fsync(place)
    return SourceFile(data, file.name, data.stat(), file)


def _bring(file: RemoteFile, source: str, data: Path, report: Callable[[int], None]) -> str:
    """Fetch a file to its place; returns the SHA-256 (hex) of its bytes."""
    if scheme_of(file.address) == HUB:
        path, sha256 = from_hub(file, source)
        data.unlink(missing_ok=True)
        data.symlink_to(path)
        report(file.bytes)
        return sha256

    opener = s3_bytes if scheme_of(file.address) == S3 else http_bytes
    sha256 = _fetch(file, source, data.with_name(_PARTIAL), opener, report)
    data.with_name(_PARTIAL).replace(data)
    return sha256


def fetch_all(files: Sequence[SourceFile | RemoteFile], source: str, pool: Pool) -> list[SourceFile]:
    """Fetch what is not on this machine, a few files as a part of one step.

    Raises:
        SourceError: See `fetched`.
    """
    folder = fetched_folder(pool)
    remote = [file for file in files if isinstance(file, RemoteFile)]
    parts = [
        Part(_key(*group), (group, source, folder), sum(file.bytes for file in group), group[0].shown)
        for group in grouped(remote)
    ]
    pool.run(f"fetch {source}", _fetch_part, parts)
    return [fetched(file, source, folder) if isinstance(file, RemoteFile) else file for file in files]


def _fetch_part(argument: tuple[Sequence[RemoteFile], str, Path], _: Path) -> dict[str, Any]:
    files, source, folder = argument
    done = 0
    for file in files:
        fetched(file, source, folder, partial(_report, done))
        done += file.bytes
    return {}


def _report(before: int, done: int) -> None:
    report_bytes(before + done)


def grouped(files: Iterable[FileT], most: int = PART_BYTES) -> Iterator[list[FileT]]:
    """Files in groups of up to `most` bytes, in their order; a larger file is alone."""
    group: list[FileT] = []
    size = 0
    for file in files:
        if group and size + file.bytes > most:
            yield group
            group, size = [], 0
        group.append(file)
        size += file.bytes
    if group:
        yield group


def fetched_folder(pool: Pool) -> Path:
    """Where a stage keeps the files that it fetched."""
    return pool.shared / FETCHED


def provenance(files: Iterable[SourceFile | RemoteFile], source: Origin, folder: Path) -> Iterator[dict[str, Any]]:
    """What is recorded of the files of a source that were fetched.

    Args:
        files: Of the source. One that was not fetched, because enough rows were read before it, is left out.
        source: Whose files they are.
        folder: Where they were fetched to.
    """
    # The pieces of a large file are one file.
    for remote in dict.fromkeys(file if isinstance(file, RemoteFile) else file.remote for file in files):
        if remote is not None and (record := folder / _key(remote) / _RECORD).is_file():
            yield {"source": source.name, "licence": source.licence, **json.loads(record.read_bytes())}


def _record_of(file: RemoteFile, sha256: str) -> dict[str, Any]:
    return {
        "name": file.name,
        "address": file.shown,
        "etag": file.etag,
        "modified": file.modified,
        "bytes": file.bytes,
        "sha256": sha256,
    }


def _key(*files: RemoteFile) -> str:
    return digest_of([file.state for file in files])[:32]


def _suffix(name: str) -> str:
    suffix = shown_suffix(name)
    return suffix if suffix.startswith(".") else ""


def _fetch(file: RemoteFile, source: str, unfinished: Path, opener: Opener, report: Callable[[int], None]) -> str:
    """Fetch a whole file into `unfinished`, which may hold its beginning; returns the SHA-256 (hex) of its bytes.

    Tries are counted as long as none of them brings more than the ones before it.
    """
    unfinished.touch()
    with unfinished.open("r+b") as target:
        target.truncate(min(_on_disk(unfinished), file.bytes))
        failures, furthest = 0, _size(target)
        while True:
            try:
                if (size := _size(target)) < file.bytes:
                    _continue(file, source, unfinished, target, size, opener, report)
                return _verified(file, target)
            except Interrupted as error:
                size = _size(target)
                failures = 1 if size > furthest else failures + 1
                furthest = max(furthest, size)
                if error.restart:
                    _restart(unfinished, target, 0)
                if failures > len(_WAITS):
                    raise SourceError(
                        f"source {source}: {file.shown}: {len(_WAITS)} tries brought nothing new ({error.reason}); "
                        f"start again when the server can be reached: {furthest:,} of {file.bytes:,} bytes stay"
                    ) from None
                time.sleep(max(_WAITS[failures - 1], error.wait))


def _continue(
    file: RemoteFile,
    source: str,
    unfinished: Path,
    target: BufferedRandom,
    size: int,
    opener: Opener,
    report: Callable[[int], None],
) -> None:
    with opener(file, source, size) as (start, chunks):
        if start < size:
            _restart(unfinished, target, start)
        target.seek(start)
        synced = start
        try:
            for chunk in chunks:
                target.write(chunk)
                report(target.tell())
                if target.tell() > file.bytes:
                    raise Interrupted("it sent more bytes than it has", restart=True)
                if target.tell() - synced >= _SYNC_BYTES:
                    synced = target.tell()
                    _sync(unfinished, target, synced)
        finally:
            _sync(unfinished, target, target.tell())
    if target.tell() < file.bytes:
        raise Interrupted(f"the connection ended after {target.tell():,} of {file.bytes:,} bytes")


def _sync(unfinished: Path, target: BufferedRandom, size: int) -> None:
    """Note how many bytes are on the disk: a machine that loses its power may leave a file's end as zeros."""
    target.flush()
    os.fsync(target.fileno())
    write_durably(unfinished.with_name(_ON_DISK), str(size).encode())


def _on_disk(unfinished: Path) -> int:
    note = unfinished.with_name(_ON_DISK)
    size = note.read_bytes() if note.is_file() else b""
    return min(int(size), unfinished.stat().st_size) if size.isdigit() else 0


def _restart(unfinished: Path, target: BufferedRandom, size: int) -> None:
    unfinished.with_name(_ON_DISK).unlink(missing_ok=True)
    target.flush()
    target.truncate(size)


def _verified(file: RemoteFile, target: BufferedRandom) -> str:
    target.flush()
    target.seek(0)
    sha256 = hashlib.file_digest(target, "sha256").hexdigest()
    if file.sha256 and sha256 != file.sha256:
        raise Interrupted("its bytes do not have the digest that the server gives", restart=True)
    return sha256


def _size(target: BufferedRandom) -> int:
    target.flush()
    return target.seek(0, 2)
