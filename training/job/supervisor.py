"""`python -m training.job.supervisor GRACE COMMAND...`: run a command so that no process of it outlives its owner.

The owner holds the other end of this process's standard input. It closes when the owner ends, even by SIGKILL. Then, or
on a signal, every descendant gets SIGTERM, and SIGKILL after GRACE seconds. On Linux the supervisor adopts descendants
that left their session, and the kernel kills the command should the supervisor be killed.
Exits with the command's own code, or 128 + signal.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends. Does nothing outside Linux."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Supervise the command; return its exit code."""
    grace, command = float(arguments[0]), arguments[1:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)

    # The supervisor has one thread, so the work between fork and exec is safe.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent, process_group=0)
    while child.poll() is None and not signals and not _owner_gone(0.2):
        _reap(child.pid)

    # Also after a command that ended by itself: what it left in the background goes too.
    end_descendants(grace)
    code = child.wait()
    return code if code >= 0 else 128 - code


def end_descendants(grace: float) -> None:
    """Send SIGTERM to every descendant of this process, and SIGKILL to those left after `grace` seconds."""
    _signal_all(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while _descendants() and time.monotonic() < deadline:
        time.sleep(0.05)
    while _descendants():
        _signal_all(signal.SIGKILL)
        time.sleep(0.05)


def _owner_gone(wait: float) -> bool:
    """Whether standard input was closed; waits up to `wait` seconds for it."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], wait)
    return bool(ready) and os.read(sys.stdin.fileno(), 1) == b""


def _reap(child: int) -> None:
    """Collect adopted descendants that have ended; the child itself is Popen's to collect."""
    for process in psutil.Process().children():
        if process.pid != child and process.status() == psutil.STATUS_ZOMBIE:
            try:
                os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                continue


def _descendants() -> list[psutil.Process]:
    alive = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive


def _signal_all(number: signal.Signals) -> None:
    for process in _descendants():
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
