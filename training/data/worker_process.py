"""Processes that work on what may hang or take too much: HTML pages and chat templates."""

from __future__ import annotations

import contextlib
import subprocess


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, wait for its end, and close its pipes."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
