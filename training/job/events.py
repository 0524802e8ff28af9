"""`events.jsonl`: a job's events, written while it works. Append, flush; one JSON object a line.

Kinds:
    phase     {"name"}                                 the job entered a named part of its work
    progress  {"done", "total", "unit", "note"}        how far that part is; `total` may be null
    metrics   {"step", "values": {name: float}}        training and system metrics
    log       {"level", "message"}
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

EVENTS_FILE = "events.jsonl"


class EventWriter:
    """Appends events to a file. Only rank 0 has a file; on other ranks every call does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path else None

    def phase(self, name: str) -> None:
        """Record which part of the work begins."""
        self._write("phase", name=name)

    def progress(self, done: float, total: float | None, unit: str, note: str = "") -> None:
        """Record how far the current part is.

        Args:
            done: Units done.
            total: All units; None where their number is not known before the end.
            unit: What is counted, in the plural.
            note: A short text such as `loss 3.21`.
        """
        self._write("progress", done=done, total=total, unit=unit, note=note)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of a step. Non-finite values are kept as the strings nan, inf and -inf."""
        self._write(
            "metrics",
            step=step,
            values={name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        )

    def log(self, message: str, level: str = "info") -> None:
        """A line for the run's log."""
        self._write("log", level=level, message=message)

    def _write(self, kind: str, **fields: Any) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps({"t": time.time(), "kind": kind, **fields}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EventReader:
    """Follows an events file: each `poll` returns the whole lines that were added since the last."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def poll(self) -> list[dict[str, Any]]:
        """New events, oldest first; a line still being written is left for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        self.offset += whole
        events = []
        for line in data[:whole].split(b"\n")[:-1]:
            try:
                events.append(json.loads(line))
            except ValueError:  # a kill cut the line short, and the next start's first line follows in the same one
                continue
        return events
