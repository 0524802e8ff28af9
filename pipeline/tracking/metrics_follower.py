"""Carries a build's metric events to its MLflow run, from a thread of its own: a slow tracker never holds up a job."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.tracking.connection import Connection, logger
from pipeline.tracking.outbox import OutboxRecord
from pipeline.tracking.records import entity_name

BATCH = 500
CURVES = "curves/"
"""MLflow shows groups of metrics by alphabet: a training's curves come before `eval/` and `result/`."""

_JOIN_SECONDS = 5.0


class Point(NamedTuple):
    """One value of one metric; `timestamp` in milliseconds since the epoch."""

    key: str
    value: float
    timestamp: int
    step: int


def points_of(event: Mapping[str, Any]) -> list[Point]:
    """The points of a `metrics` event (training/job/events.py); none for other kinds."""
    if event.get("kind") != "metrics":
        return []
    timestamp = int(float(event["t"]) * 1000)
    return [
        Point(entity_name(key if "/" in key else CURVES + key), float(value), timestamp, int(event["step"]))
        for key, value in event["values"].items()
    ]


def read_points(path: Path, start: int, end: int) -> tuple[list[Point], int]:
    """The points of some events of a file: of a batch at most, or of one event where that one holds more.

    Args:
        start: Offset of the first event.
        end: Where to stop at the latest: the end of a line.

    Returns:
        The points, and the offset after the last event that was read.
    """
    points: list[Point] = []
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            line = file.readline()
            if not line:  # somebody cut the file
                return points, end
            try:
                fresh = points_of(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):  # a kill cut the line short
                fresh = []

            if points and len(points) + len(fresh) > BATCH:
                break
            points += fresh
            start += len(line)

    return points, start


def deliver(connection: Connection, record: OutboxRecord, stop: Callable[[], bool] = lambda: False) -> bool:
    """Send MLflow the points that a build's run lacks, in batches; return whether it has all that there are by now.

    MLflow drops a point that it holds already (same run, key, step, timestamp and value), so a batch whose answer was
    lost is simply sent again.
    """
    while record.build.delivered < (end := record.end):
        points, offset = read_points(record.events, record.build.delivered, end)
        for first in range(0, len(points), BATCH):
            if stop() or not _send(connection, record.build.run_id, points[first : first + BATCH]):
                return False
        record.change(delivered=offset)

    return True


class MetricsFollower:
    """Begins a build's run and keeps delivering its events until it is closed; what is left then stays in the outbox.

    Args:
        connection: The tracking store.
        record: The build's record in the outbox.
        begin: Begins its run, if it has none, and says whether it has one now.
        interval: Seconds between deliveries.
    """

    def __init__(
        self, connection: Connection, record: OutboxRecord, begin: Callable[[], bool], interval: float = 2.0
    ) -> None:
        self._connection = connection
        self._record = record
        self._begin = begin
        self._interval = interval
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="gatehouse-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the deliveries. A call to MLflow that is going on gets a few seconds, and is then left to itself."""
        self._closing.set()
        self._thread.join(_JOIN_SECONDS)

    def _follow(self) -> None:
        begun = False
        try:
            while not self._closing.wait(self._interval):
                begun = begun or self._begin()
                if begun:
                    deliver(self._connection, self._record, self._closing.is_set)
        except OSError as error:
            logger.warning("the record of what MLflow has of this build cannot be kept: %s", error)


def _send(connection: Connection, run_id: str, batch: list[Point]) -> bool:
    def call(client: Any) -> bool:
        from mlflow.entities import Metric

        client.log_batch(run_id, metrics=[Metric(*point) for point in batch])
        return True

    return connection.attempt(f"record {len(batch)} metric values", call, False)
