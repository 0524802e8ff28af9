"""What MLflow is owed of a build, kept in the attempt's folder until it is paid.

The events of an attempt stay in its `events.jsonl`. Beside them lies one `tracking-<key>.json` for each build: which
MLflow run shows it, how many of its events that run holds, and whether MLflow was told how it ended. Whoever comes to
MLflow next pays what is owed (`pipeline.tracking.delivery`), also after a kill, so nothing has to be delivered at
once. The record follows what MLflow has confirmed; what was confirmed last may be sent again, and MLflow drops it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from training.job.events import EVENTS_FILE
from training.specs.base import Spec
from training.store.storage import write_durably

logger = logging.getLogger("gatehouse.tracker")

_PATTERN = "tracking-*.json"
_BLOCK = 65536


class Build(Spec):
    """One build, from its job's start to its published version.

    Attributes:
        key: MLflow's run carries it as a tag, and is found by it again.
        started: Seconds since the epoch.
        start: Where its events begin in the attempt's `events.jsonl`.
        end: Where they end; None until it is published, for a failed attempt is gone on with.
        delivered: MLflow holds the events up to here.
        told: MLflow knows how it ended.
    """

    key: str
    started: float
    start: int
    end: int | None = None
    outcome: Literal["", "published", "failed", "killed"] = ""
    version: str = ""
    error: str = ""
    run_id: str = ""
    delivered: int
    told: bool = False


class Debt:
    """The record of one build, on disk and here. Threads may share it."""

    def __init__(self, path: Path, build: Build) -> None:
        self.path = path
        self.build = build
        self._changing = threading.Lock()

    @property
    def attempt(self) -> Path:
        """The attempt's folder."""
        return self.path.parent

    @property
    def events(self) -> Path:
        """The attempt's events, of all its builds."""
        return self.attempt / EVENTS_FILE

    @property
    def end(self) -> int:
        """Where the build's events end: so far, unless it is published."""
        written = whole_lines(self.events)
        return written if self.build.end is None else min(self.build.end, written)

    @property
    def is_owed(self) -> bool:
        """Whether MLflow does not know all of it."""
        return not self.build.told or self.build.delivered < self.end

    def change(self, **fields: object) -> None:
        """Set fields, durably; the others stay as they are on disk, where a follower or a settlement may write too."""
        with self._changing:
            self.build = Build.model_validate(json.loads(self.path.read_bytes()) | fields)
            _write(self.path, self.build)


def open_debt(attempt: Path) -> Debt:
    """The record of the build that begins in an attempt's folder now: it goes on where one was cut short."""
    for debt in debts_of(attempt):
        if debt.build.outcome != "published":
            debt.change(outcome="", error="", told=False)
            return debt
    attempt.mkdir(parents=True, exist_ok=True)
    written = whole_lines(attempt / EVENTS_FILE)
    build = Build(key=uuid.uuid4().hex, started=time.time(), start=written, delivered=written)
    path = attempt / f"tracking-{build.key}.json"
    _write(path, build)
    return Debt(path, build)


def debts_of(attempt: Path) -> list[Debt]:
    """The records of all builds of an attempt, oldest first. A damaged one is named in the log and left alone."""
    return _read(attempt.glob(_PATTERN))


def debts(work: Path, recipe: str) -> list[Debt]:
    """The records of all builds of a recipe in the order in which they began, so that parents precede children."""
    return _read((work / recipe).glob(f"*/*/{_PATTERN}"))


def owes(attempt: Path) -> bool:
    """Whether an attempt's folder holds anything that MLflow does not know yet, and so must be kept.

    A damaged record may hide a debt, so it counts as one.
    """
    found = debts_of(attempt)
    return len(found) < len(list(attempt.glob(_PATTERN))) or any(debt.is_owed for debt in found)


def is_record(path: Path) -> bool:
    """Whether a file of an attempt's folder is the record of a build."""
    return path.match(_PATTERN)


def whole_lines(path: Path) -> int:
    """Length of a file up to the end of its last whole line; 0 when there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
    return 0


@contextmanager
def settling(attempts: Path, seconds: float) -> Iterator[bool]:
    """Let one process at a time begin runs and record versions of a recipe in MLflow.

    Args:
        attempts: Folder of the recipe's attempts.
        seconds: How long to wait for another one that does.

    Yields:
        Whether it is this one's turn.
    """
    path = attempts / "tracking.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with path.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.1)
        yield True


def _read(paths: Iterable[Path]) -> list[Debt]:
    found = []
    for path in paths:
        try:
            found.append(Debt(path, Build.model_validate_json(path.read_bytes())))
        except ValidationError as error:
            logger.warning(
                "%s is damaged: %s; what MLflow was told of this build is not known. Delete the file to "
                "give up what is missing there",
                path,
                error.errors()[0]["msg"],
            )
    return sorted(found, key=lambda debt: debt.build.started)


def _write(path: Path, build: Build) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    write_durably(temporary, build.model_dump_json(indent=1).encode())
    temporary.replace(path)
