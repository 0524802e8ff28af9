"""Locks that the kernel releases when their process ends, however it ends: one builder per asset, one per run.

The locks of builders, servers and runs are our own, because they do what filelock does not: they name their holder,
they are asked about without being waited for, and a run's lock is held before it has its name. A lock that is simply
waited for is filelock's (docs/decisions/README.md).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.jobs import orphans
from training.errors import Busy, StoreError

LOCK_FILE = "lock"
CLEANING = "the end of what a killed run left running"
_ASKING_SECONDS = 0.2


@contextmanager
def building(work: Path, recipe: str, asset: str, owner: str) -> Iterator[None]:
    """Hold an asset's lock, and end what a killed run left running of the asset, before it writes beside this one.

    If somebody else is ending such processes at this moment, that is waited for: a run that Dagster starts again must
    not fail because of it.

    Raises:
        Busy: Another run is building the asset; the message names it.
        StoreError: The folder of the attempts cannot be written.
    """
    path = work / recipe / asset / LOCK_FILE
    busy = f"{asset} is being built by %s; wait for it to finish, or cancel it, and start again"

    with held(path, owner, busy, wait_for=CLEANING):
        if ended := orphans.end(path):
            logging.getLogger("gatehouse").warning(ended)
        yield


@contextmanager
def held(path: Path, owner: str, busy: str, wait_for: str = "") -> Iterator[None]:
    """Hold a lock; the kernel releases it when this process ends, however it ends.

    Args:
        owner: Who holds it, for the message to others.
        busy: What to say when it is held; `%s` stands for its holder.
        wait_for: An owner that is waited for.

    Raises:
        Busy: It is held by anybody else.
        StoreError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(path, error) from error

    try:
        if not _acquire(descriptor, wait_for):
            raise Busy(busy % _holder(_note(descriptor)))

        note = json.dumps({"owner": owner, "pid": os.getpid(), "since": time.time()})
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note.encode(), 0)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; the folder of Gatehouse's state needs room") from error
        yield
    finally:
        os.close(descriptor)


def plain_lock(path: Path, seconds: float = -1) -> FileLock:
    """A lock that is simply waited for: nobody is refused, and nobody asks who holds it.

    Args:
        seconds: How long to wait before `filelock.Timeout` is raised; for ever where it is negative.
    """
    # Without flock filelock would fall back to a lock that a killed process leaves behind: that is refused.
    return FileLock(path, timeout=seconds, fallback_to_soft=False)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait for a plain lock and hold it.

    Raises:
        StoreError: It cannot be written.
    """
    lock = plain_lock(path)
    try:
        lock.acquire()
    except OSError as error:
        raise _unwritable(path, error) from error

    try:
        yield
    finally:
        lock.release()


_runs: dict[Path, int] = {}


def mark_alive(runs: Path, run_id: str) -> None:
    """Hold the run's lock until this process ends.

    The file stays. Where its lock is free and Dagster shows the run as unfinished, the run is dead, also when its
    process ended in order and had no room on the disk to say so.

    Args:
        runs: Folder of such locks.
        run_id: Dagster's.
    """
    path = runs / f"{run_id}.lock"
    if path in _runs:
        return

    runs.mkdir(parents=True, exist_ok=True)
    unnamed = path.with_name(f".{run_id}-{os.getpid()}")
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unnamed.replace(path)  # held before it has its name: nobody ever sees a living run without its lock
    _runs[path] = descriptor


def is_alive(runs: Path, run_id: str) -> bool:
    """Whether a process shows now that it executes the run."""
    return is_held(runs / f"{run_id}.lock") is True


def is_dead(runs: Path, run_id: str) -> bool:
    """Whether a run once marked itself alive and no process does so now."""
    return is_held(runs / f"{run_id}.lock") is False


def free_locks(runs: Path) -> list[str]:
    """Ids of the runs that once marked themselves alive, and whose process has ended."""
    return [path.stem for path in sorted(runs.glob("*.lock")) if is_held(path) is False]


def is_held(path: Path) -> bool | None:
    """Whether a process holds a lock now; None when there is no such lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, wait_for: str) -> bool:
    """Take a lock unless it is held; return whether it is this process's now."""
    # Whoever only asks whether the lock is held (`is_held`) holds it for a moment too: one refusal proves nothing.
    deadline = time.monotonic() + _ASKING_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if wait_for and _note(descriptor).get("owner") == wait_for:
                deadline = time.monotonic() + _ASKING_SECONDS
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def _note(descriptor: int) -> dict[str, Any]:
    """What a holder has written about itself; empty where that cannot be read."""
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _holder(note: dict[str, Any]) -> str:
    try:
        since = time.strftime("%H:%M:%S", time.localtime(note["since"]))
        return f"{note['owner']} (process {note['pid']}, since {since})"
    except (KeyError, TypeError):
        return "another run"


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: {error.strerror}; the folder of Gatehouse's state must be writable")
