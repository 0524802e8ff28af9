"""`python -m training.job.supervisor GRACE COMMAND...`: run a command so that nothing of it can outlive its owner.

The owner holds the other end of this process's standard input. When that closes (the owner ended, however it ended) or
a signal asks for it, every descendant gets SIGTERM, then SIGKILL after GRACE seconds. On Linux the supervisor adopts
descendants that left their session, and the command itself is killed by the kernel should the supervisor be killed.
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

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends. Does nothing outside Linux."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Supervise the command; return its exit code."""
    grace, command = float(arguments[0]), arguments[1:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    # The supervisor has one thread, so the work between fork and exec is safe.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent, process_group=0)
    while child.poll() is None and not asked and not _owner_gone(0.2):
        _reap(child.pid)
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
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], wait)
    return bool(ready) and os.read(sys.stdin.fileno(), 1) == b""


def _reap(child: int) -> None:
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
