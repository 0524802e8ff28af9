"""Processes that outlived their owner, as when it and its supervisor were killed at once.

Whoever starts processes holds a lock, and marks them with it in their environment, which their descendants inherit. The
kernel frees the lock when its holder ends, however it ends: a marked process whose lock is free belongs to nobody. It
is known by that mark and never by a number, which may be another process's by now.
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
class Marked:
    """A living process that whoever started it, or an ancestor of it, has marked.

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

    def below(self, pids: set[int]) -> bool:
        """Whether one of these processes is an ancestor."""
        try:
            return any(parent.pid in pids for parent in self.process.parents())
        except psutil.Error:
            return False


def marks(lock: Path, run_id: str, grace: float) -> dict[str, str]:
    """Environment of the processes that belong to whoever holds a lock."""
    return {_LOCK: str(lock.resolve()), RUN: run_id, _GRACE: str(grace)}


def marked(below: Path) -> dict[Path, list[Marked]]:
    """Living processes by the lock that they are marked with, but for this one and its ancestors.

    Args:
        below: A folder of locks, or one lock.
    """
    found = defaultdict(list)
    me = psutil.Process()
    own = {me.pid, *(process.pid for process in me.parents())}
    for process in psutil.process_iter():
        try:
            environment = process.environ() if process.pid not in own else {}
            lock = Path(environment.get(_LOCK, os.devnull))
            if lock.is_relative_to(below.resolve()) and process.status() != psutil.STATUS_ZOMBIE:
                found[lock].append(Marked(process, environment.get(RUN, ""), float(environment.get(_GRACE, 0))))
        except (psutil.Error, OSError):  # another user's, or it has ended meanwhile
            continue
    return found


def end(lock: Path) -> str:
    """End every process that is marked with a lock; the caller holds it.

    Each gets SIGTERM, but for those that a supervisor among them ends by itself when it gets one. What is left after
    the grace period gets SIGKILL.

    Returns:
        One line about what was done; empty if there was nothing to do.

    Raises:
        UserError: A process does not end, whatever it is sent.
    """
    found = marked(lock).get(lock.resolve(), [])
    if not found:
        return ""
    supervisors = {one.process.pid for one in found if one.supervises}
    _signal([one.process.terminate for one in found if not one.below(supervisors)])
    # A supervisor takes the whole grace period itself before it kills.
    patience = time.monotonic() + max(one.grace for one in found) + (1 if supervisors else 0)
    while left := marked(lock).get(lock.resolve(), []):
        over = time.monotonic() - patience
        if over > _AFTER_KILL_SECONDS:
            raise UserError(
                f"process {left[0].process.pid}, left running by {_owners(lock, left)}, does not end even "
                "when it is killed: it waits for a device or a network drive; if it stays, restart the "
                "machine"
            )
        if over > 0:
            _signal([one.process.kill for one in left])
        time.sleep(_POLL_SECONDS)
    return f"Ended {len(found)} process{'es' * (len(found) > 1)} left running by {_owners(lock, found)}."


def _signal(sends: Iterable[Callable[[], None]]) -> None:
    for send in sends:
        try:
            send()
        except psutil.NoSuchProcess:
            continue


def _owners(lock: Path, left: list[Marked]) -> str:
    """Who left them: `base_model of run 1a2b3c4d`, or `gatehouse up`."""
    if lock.name != "lock":
        return f"gatehouse {lock.stem}"
    runs = sorted({one.run_id[:8] for one in left if one.run_id})
    return f"{lock.parent.name} of {'run ' + ', '.join(runs) if runs else 'a killed command'}"
