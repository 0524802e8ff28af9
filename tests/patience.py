"""Limits of tests by progress and not by the clock: a busy machine makes what is tested slow, and slow is no fault."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

_LOOK_SECONDS = 0.02
_RUNNING = re.compile(r"^procs_running (\d+)$", re.MULTILINE)


class Patience:
    """A limit in seconds of a machine that has nothing else to do.

    While more threads want to run than there are cores, its clock goes slower by as much.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._left = seconds
        self._looked = time.monotonic()

    def is_over(self) -> bool:
        """Whether the time is up; to be asked often."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._left -= (now - self._looked) * _share()
            self._looked = now
        return self._left < 0

    @property
    def spent(self) -> float:
        """How much of the time had passed when it was last asked whether it is up."""
        return self._seconds - self._left


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail where a block takes more than so many seconds of a machine that has nothing else to do."""
    patience, done = Patience(seconds), threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS * 2):
            patience.is_over()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert not patience.is_over(), f"it took {patience.spent:.1f} s, and not {seconds} s at most"


def wait_for(
    condition: Callable[[], Any], seconds: float, otherwise: Callable[[], str] | str, every: float = 0.05
) -> None:
    """Wait until a condition holds.

    Args:
        otherwise: The message of the test that fails because it does not.
        every: Seconds between two looks.
    """
    patience = Patience(seconds)
    while not condition():
        assert not patience.is_over(), otherwise if isinstance(otherwise, str) else otherwise()
        time.sleep(every)


def finish(process: subprocess.Popen[Any], seconds: float) -> int:
    """Wait for the end of a process and return its exit code; one that takes longer is killed, and the test fails."""
    try:
        wait_for(lambda: process.poll() is not None, seconds, f"{process.args!r} does not end")
    except AssertionError:
        _kill(process)
        raise
    return process.returncode


def run_command(
    command: Sequence[str], silent_seconds: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command; one that says nothing for too long is killed, and the test fails with what it said.

    Args:
        silent_seconds: Each piece of output begins this limit anew.
        options: Of `subprocess.Popen`.

    Returns:
        Its exit code, and its standard output and error together.
    """
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=output, **options) as process,
    ):
        said, patience = 0, Patience(silent_seconds)
        while process.poll() is None:
            if (size := os.fstat(output.fileno()).st_size) > said:
                said, patience = size, Patience(silent_seconds)
            if patience.is_over():
                _kill(process)
                raise AssertionError(f"{' '.join(command)} hangs; it said:\n{_text(output)}")
            time.sleep(0.05)
        return subprocess.CompletedProcess(command, process.returncode, _text(output))


def _text(output: Any) -> str:
    output.seek(0)
    return str(output.read().decode(errors="replace"))


def _share() -> float:
    """The share of a core that a thread gets now."""
    found = _RUNNING.search(Path("/proc/stat").read_text())
    return min(1.0, (os.cpu_count() or 1) / max(int(found[1]) if found else 1, 1))


def kill_family(pid: int) -> None:
    """Kill a process and all that it started."""
    process = psutil.Process(pid)
    for member in (*process.children(recursive=True), process):
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def _kill(process: subprocess.Popen[Any]) -> None:
    kill_family(process.pid)
    process.wait()
