"""Processes that outlived their owner, as when it and its supervisor were killed at once.

Whoever starts processes holds a lock and names it in their environment, which their descendants inherit. The kernel
frees the lock when its holder ends, however it ends: a process whose owner's lock is free is an orphan. It is known by
that variable and never by a process number, which may be another process's by now.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from training.errors import UserError

RUN = "GATEHOUSE_RUN_ID"
_LOCK, _GRACE = "GATEHOUSE_LOCK", "GATEHOUSE_GRACE"
_AFTER_KILL_SECONDS = 10
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class OwnedProcess:
    """A living process that names its owner's lock, or inherited that from the process that started it.

    Attributes:
        run_id: Dagster's, empty where there is none.
        grace: Seconds that it may take to end.
    """

    process: psutil.Process
    run_id: str
    grace: float

    @property
    def supervises(self) -> bool:
        """Whether it ends the others by itself when it is told to."""
        try:
            return "training.job.supervisor" in self.process.cmdline()
        except psutil.Error:
            return False

    def is_below(self, pids: set[int]) -> bool:
        """Whether one of these processes is an ancestor."""
        try:
            return any(parent.pid in pids for parent in self.process.parents())
        except psutil.Error:
            return False


def ownership_env(lock: Path, run_id: str, grace: float) -> dict[str, str]:
    """Environment of the processes that belong to whoever holds a lock."""
    return {_LOCK: str(lock.resolve()), RUN: run_id, _GRACE: str(grace)}


def owned_processes(below: Path) -> dict[Path, list[OwnedProcess]]:
    """Living processes by their owner's lock; this process and its ancestors are left out.

    Args:
        below: A folder of locks, or one lock.
    """
    processes = defaultdict(list)
    this = psutil.Process()
    line = {this.pid, *(parent.pid for parent in this.parents())}

    for process in psutil.process_iter():
        try:
            environment = process.environ() if process.pid not in line else {}
            lock = Path(environment.get(_LOCK, os.devnull))
            if lock.is_relative_to(below.resolve()) and process.status() != psutil.STATUS_ZOMBIE:
                run_id, grace = environment.get(RUN, ""), float(environment.get(_GRACE, 0))
                processes[lock].append(OwnedProcess(process, run_id, grace))
        except (psutil.Error, OSError):  # another user's process, or one that has just ended
            continue

    return processes


def end(lock: Path) -> str:
    """End every process that names a lock as its owner's; the caller holds the lock.

    Each gets SIGTERM, except those that a supervisor among them ends by itself. Whatever is left after the grace period
    gets SIGKILL.

    Returns:
        One line about what was done; empty if there was nothing to do.

    Raises:
        UserError: A process does not end, whatever it is sent.
    """
    orphans = owned_processes(lock).get(lock.resolve(), [])
    if not orphans:
        return ""

    supervisors = {orphan.process.pid for orphan in orphans if orphan.supervises}
    _signal([orphan.process.terminate for orphan in orphans if not orphan.is_below(supervisors)])

    # A supervisor takes the whole grace period itself before it kills.
    deadline = time.monotonic() + max(orphan.grace for orphan in orphans) + (1 if supervisors else 0)
    while alive := owned_processes(lock).get(lock.resolve(), []):
        overdue = time.monotonic() - deadline
        if overdue > _AFTER_KILL_SECONDS:
            raise UserError(
                f"process {alive[0].process.pid}, left running by {_owners(lock, alive)}, does not end even when it is "
                "killed: it waits for a device or a network drive; if it stays, restart the machine"
            )
        if overdue > 0:
            _signal([orphan.process.kill for orphan in alive])
        time.sleep(_POLL_SECONDS)

    return f"Ended {len(orphans)} process{'es' * (len(orphans) > 1)} left running by {_owners(lock, orphans)}."


def _signal(sends: Iterable[Callable[[], None]]) -> None:
    for send in sends:
        try:
            send()
        except psutil.NoSuchProcess:
            continue


def _owners(lock: Path, orphans: list[OwnedProcess]) -> str:
    """Who left them: `base_model of run 1a2b3c4d`, or `gatehouse up`."""
    if lock.name != "lock":
        return f"gatehouse {lock.stem}"
    runs = sorted({orphan.run_id[:8] for orphan in orphans if orphan.run_id})
    return f"{lock.parent.name} of {'run ' + ', '.join(runs) if runs else 'a killed command'}"
