"""The outbox: what MLflow has still to be sent of each build, kept in the attempt's folder until it is delivered.

The events of an attempt stay in its `events.jsonl`. Beside them lies one `tracking-<key>.json` for each build: which
MLflow run shows it, how many of its events that run holds, and whether MLflow knows how it ended. Whoever comes to
MLflow next delivers what is left (`pipeline.tracking.delivery`), also after a kill, so nothing has to be delivered at
once. A record is changed only after MLflow has confirmed something. What was confirmed last may be sent again, and
MLflow drops it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import Timeout
from pydantic import ConfigDict, Field, ValidationError

from pipeline.jobs.locks import plain_lock
from training.job.events import EVENTS_FILE
from training.specs.base import Spec
from training.store.storage import write_durably

logger = logging.getLogger("gatehouse.tracker")

_PATTERN = "tracking-*.json"
_BLOCK = 65536


class Build(Spec):
    """One build, from its job's start to its published version.

    Attributes:
        key: MLflow's run carries it as a tag, by which it is found again.
        started: Seconds since the epoch.
        start: Where its events begin in the attempt's `events.jsonl`.
        end: Where they end; None until it is published, because a failed attempt continues in the same file.
        delivered: MLflow holds the events up to here.
        outcome_delivered: MLflow knows how it ended. In the file the field is called `told`.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    key: str
    started: float
    start: int
    end: int | None = None
    outcome: Literal["", "published", "failed", "killed"] = ""
    version: str = ""
    error: str = ""
    run_id: str = ""
    delivered: int
    outcome_delivered: bool = Field(False, alias="told")


class OutboxRecord:
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
    def asset(self) -> str:
        """The asset that was built."""
        return self.attempt.parent.name

    @property
    def events(self) -> Path:
        """The attempt's events, of all its builds."""
        return self.attempt / EVENTS_FILE

    @property
    def end(self) -> int:
        """Where the build's events end: at the last one written so far, unless it is published."""
        written = whole_lines(self.events)
        return written if self.build.end is None else min(self.build.end, written)

    @property
    def is_delivered(self) -> bool:
        """Whether MLflow has all of it that there is by now."""
        return self.build.outcome_delivered and self.build.delivered >= self.end

    def change(self, **fields: object) -> None:
        """Set fields, durably; the others stay as they are on disk, where another process may have written."""
        with self._changing:
            on_disk = Build.model_validate_json(self.path.read_bytes())
            self.build = Build.model_validate(on_disk.model_dump() | fields)
            _write(self.path, self.build)


def open_record(attempt: Path) -> OutboxRecord:
    """The record of the build that begins in an attempt's folder now. A build that was cut short keeps its record."""
    for record in records_of(attempt):
        if record.build.outcome != "published":
            record.change(outcome="", error="", outcome_delivered=False)
            return record

    attempt.mkdir(parents=True, exist_ok=True)
    written = whole_lines(attempt / EVENTS_FILE)
    build = Build(key=uuid.uuid4().hex, started=time.time(), start=written, delivered=written)
    path = attempt / f"tracking-{build.key}.json"
    _write(path, build)
    return OutboxRecord(path, build)


def records_of(attempt: Path) -> list[OutboxRecord]:
    """The records of all builds of an attempt, oldest first. A damaged one is named in the log and left alone."""
    return _read(attempt.glob(_PATTERN))


def outbox(work: Path, recipe: str) -> list[OutboxRecord]:
    """The records of all builds of a recipe in the order in which they began, so that parents precede children."""
    return _read((work / recipe).glob(f"*/*/{_PATTERN}"))


def has_undelivered(attempt: Path) -> bool:
    """Whether an attempt's folder holds anything that MLflow does not have yet, so that it must be kept.

    A damaged record may hide such a thing, so it counts as one.
    """
    records = records_of(attempt)
    damaged = len(list(attempt.glob(_PATTERN))) - len(records)
    return damaged > 0 or not all(record.is_delivered for record in records)


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
def delivery_turn(attempts: Path, seconds: float) -> Iterator[bool]:
    """Let one process at a time begin runs and record versions of a recipe in MLflow.

    Args:
        attempts: Folder of the recipe's attempts.
        seconds: How long to wait for another process that does.

    Yields:
        Whether it is this one's turn.
    """
    attempts.mkdir(parents=True, exist_ok=True)
    lock = plain_lock(attempts / "tracking.lock", seconds)

    with suppress(Timeout):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _read(paths: Iterable[Path]) -> list[OutboxRecord]:
    records = []
    for path in paths:
        try:
            records.append(OutboxRecord(path, Build.model_validate_json(path.read_bytes())))
        except ValidationError as error:
            logger.warning(
                "%s is damaged: %s; it no longer says what MLflow has of this build. Delete the file to give up "
                "what is missing there",
                path,
                error.errors()[0]["msg"],
            )

    return sorted(records, key=lambda record: record.build.started)


def _write(path: Path, build: Build) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    write_durably(temporary, build.model_dump_json(indent=1, by_alias=True).encode())
    temporary.replace(path)
