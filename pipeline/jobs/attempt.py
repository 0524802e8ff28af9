"""What lies in an attempt's folder, whichever launcher runs its job: the job itself, and what its processes print."""

from __future__ import annotations

import sys
from pathlib import Path

JOB_FILE = "job.json"
OUTPUT_FILE = "output.log"


class OutputTail:
    """The part of an output file that was written since this object was made."""

    def __init__(self, path: Path, forward: bool) -> None:
        self.path = path
        self._start = self._offset = size_of(path)
        self._forward = forward

    def forward(self) -> None:
        """Copy what is new to standard error, if that is wanted."""
        if not self._forward or size_of(self.path) <= self._offset:
            return

        data = self._read(self._offset)
        self._offset += len(data)
        try:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
        except (OSError, ValueError):  # a closed terminal or a full disk must not end a training
            self._forward = False

    def end(self, lines: int = 30) -> str:
        """The last lines."""
        return "\n".join(self._read(self._start).decode(errors="replace").splitlines()[-lines:])

    def last_line(self) -> str:
        """The last line, or where to look when nothing was printed."""
        return self.end(1) or f"no message; see {self.path}"

    def _read(self, offset: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read()


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it does not exist."""
    return path.stat().st_size if path.exists() else 0
