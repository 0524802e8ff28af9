"""Faults of a storage: every call of an operation counted, and the one chosen ended by a kill or by an error."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.evidence import with_evidence
from tests.unit.store.test_store import certificate, draft, pointer_to
from training.specs.artifacts import Manifest
from training.store.store import Store

CHANGING = ("rename", "replace", "link", "unlink", "rmdir", "mkdir", "fsync", "sendfile", "utime", "chmod")
"""Functions of `os` that change what a disk holds, or that wait for it."""


class Fault:
    """Counts calls; at call number `at` the process is killed, or the call fails.

    Args:
        at: From 1 on; 0 only counts.
        kind: `kill`; `error`: that call fails; `gone`: that call and all later ones fail.

    Attributes:
        calls: Names of the calls so far.
    """

    def __init__(self, at: int = 0, kind: str = "kill") -> None:
        self.calls: list[str] = []
        self._at, self._kind = at, kind

    def due(self, name: str) -> bool:
        """Count a call; return whether it is the one that fails."""
        self.calls.append(name)
        number = len(self.calls)
        return self._at > 0 and (number == self._at or (number > self._at and self._kind == "gone"))

    def strike(self) -> None:
        """Be killed, or fail."""
        if self._kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class _Torn:
    """A file open for writing: a write that is due leaves the first half of its bytes."""

    def __init__(self, file: Any, fault: Fault) -> None:
        self._file, self._fault = file, fault

    def write(self, data: Any) -> int:
        if self._fault.due("write"):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._fault.strike()
        return int(self._file.write(data))

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def faulty_disk(fault: Fault) -> Iterator[None]:
    """Let a fault see every call of this process that changes the disk."""
    real = {name: getattr(os, name) for name in CHANGING}
    real_open = builtins.open

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if fault.due(name):
                fault.strike()
            return real[name](*arguments, **named)

        return call

    def opened(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not set("wax+") & set(mode):
            return real_open(path, mode, *arguments, **named)
        if fault.due("open"):
            fault.strike()
        return _Torn(real_open(path, mode, *arguments, **named), fault)

    for name in CHANGING:
        setattr(os, name, counted(name))
    builtins.open = io.open = opened
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        builtins.open = io.open = real_open


def in_child(work: Callable[[], None], uid: int = 0) -> int:
    """Do something in a forked process, as another user if asked; its exit code, or the signal's number, negative."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_files(folder: Path, text: str) -> Path:
    """A small artifact with folders in it, made of this text."""
    for name in ("data.txt", "model/deep/weights.bin", "report/time.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text} {name} " * 20)
    return folder


def publish(store: Store, folder: Path, text: str, asset: str = "corpus", identity: str = "a" * 64) -> Manifest:
    """Publish such an artifact."""
    return store.publish(write_files(folder, text), draft(asset, identity))


def promote(store: Store, manifest: Manifest, by: str = "test") -> None:
    """Certify a version and promote it."""
    issued = with_evidence(store, certificate(manifest, issued_by=by))
    store.write_certificate(issued)
    store.promote(pointer_to(issued))


def served(store: Store, asset: str = "corpus") -> tuple[str, str, str]:
    """The promoted version as a job gets it, verified: version, certificate, and the text it is made of.

    Raises:
        UserError: It is refused.
    """
    pointer = store.promotion(asset)
    if pointer is None:
        return "", "", ""
    issued = store.require_promoted(asset, pointer.version, pointer.digest, pointer.certificate_digest)
    folder = store.verified_folder(asset, pointer.version, pointer.digest)
    assert [made for made in store.promotions(asset) if made == pointer], "the history does not know the pointer"
    return pointer.version, issued.digest, text_of(folder)


def text_of(folder: Path) -> str:
    """The text that an artifact was made of; it must be the same in all of its files."""
    texts = text_in(folder)
    assert len(texts) == 1, f"{folder} is a mixture of {texts}"
    return texts.pop()


def text_in(folder: Path) -> set[str]:
    """The texts that the files of a folder were made of."""
    return {path.read_text().split(" ")[0] for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}


def assert_whole(store: Store, asset: str = "corpus") -> list[str]:
    """Every version that a reader sees is whole; return them."""
    versions = store.versions(asset)
    for version in versions:
        manifest = store.manifest(asset, version)
        text_of(store.verified_folder(asset, version, manifest.digest))
    return versions


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The same with one byte changed."""
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    return bytes(changed)
