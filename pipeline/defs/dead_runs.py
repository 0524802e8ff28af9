"""Dead runs: those whose process was killed. Dagster alone would show them as running for ever."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from pipeline.jobs import orphans
from pipeline.jobs.locks import CLEANING, free_locks, held, is_alive, is_dead
from training.errors import Busy

_NOT_BEGUN = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING]
_UNFINISHED = [*_NOT_BEGUN, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_CODE_SERVERS = "code-servers.txt"
_ENDED = "it was killed, the machine went down, or its disk was full."
_KILLED = f"The process of this run ended unexpectedly: {_ENDED} Start it again; it goes on from its last checkpoint."
_NEVER_BEGAN = f"The process of this run ended before the run began: {_ENDED} Start it again."


def fail_dead_runs(instance: dg.DagsterInstance, runs: Path, ended_servers: Collection[str] = ()) -> list[str]:
    """Mark every unfinished run whose process has ended as failed, so that nothing waits for it.

    A database may hold runs of other homes and of other machines too. A run is this home's if its lock is here, or if a
    code server of this home has started it. The locks of runs that are over are removed.

    Args:
        instance: Where the runs are recorded.
        runs: Folder of the locks by which runs show that they are alive.
        ended_servers: Sockets of code servers that have ended. A run that one of them had started and that holds no
            lock is dead, even if it was killed before it could take its lock.

    Returns:
        Ids of the runs that were ended.
    """
    failed = []
    for listed in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        lost_its_server = _started_by(listed) in ended_servers and not is_alive(runs, listed.run_id)
        if not lost_its_server and not is_dead(runs, listed.run_id):
            continue

        run = instance.get_run_by_id(listed.run_id)  # it may have ended well since it was listed
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, _NEVER_BEGAN if run.status in _NOT_BEGUN else _KILLED)
            failed.append(run.run_id)

    for run_id in free_locks(runs):
        run = instance.get_run_by_id(run_id)
        if run is not None and run.is_finished:
            (runs / f"{run_id}.lock").unlink(missing_ok=True)

    return failed


def end_orphans(home: Path) -> list[str]:
    """End the processes that a killed run or `gatehouse up` left behind because its supervisor was killed too.

    Args:
        home: Folder of all state; what belongs to another one is left alone.

    Returns:
        One line for each owner that left something.
    """
    lines = []
    for lock in orphans.owned_processes(home):
        try:
            with held(lock, CLEANING, "%s"):
                lines.append(orphans.end(lock))
        except Busy:  # its owner is alive
            continue

    return [line for line in lines if line]


def clean_up(instance: dg.DagsterInstance, home: Path, runs: Path, *, servers_ended: bool = False) -> list[str]:
    """End what was left running, and mark as failed what is dead.

    Args:
        servers_ended: None of the home's code servers is running.

    Returns:
        What was done, one line each.
    """
    # Processes first: Dagster may start a failed run again at once, and it must not meet what the first one left.
    lines = end_orphans(home)
    dead = fail_dead_runs(instance, runs, noted_code_servers(home) if servers_ended else ())
    if servers_ended:
        (home / _CODE_SERVERS).unlink(missing_ok=True)

    return lines + [f"Run {run_id[:8]} ended unexpectedly; it is marked as failed." for run_id in dead]


def note_code_servers(home: Path, sockets: Collection[str]) -> None:
    """Keep the sockets of a home's code servers: when everything is killed, their runs are known by them."""
    with suppress(OSError):  # without the note, as on a full disk, their runs are left alone
        if fresh := sorted(set(sockets) - noted_code_servers(home)):
            with (home / _CODE_SERVERS).open("a") as file:
                file.writelines(f"{socket}\n" for socket in fresh)


def noted_code_servers(home: Path) -> set[str]:
    """The sockets of a home's code servers, also of those that have ended since the last clean-up."""
    try:
        return set((home / _CODE_SERVERS).read_text().splitlines())
    except FileNotFoundError:
        return set()


def _started_by(run: dg.DagsterRun) -> str | None:
    """Socket of the code server that has started a run; None for other runs."""
    socket = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("socket")
    return str(socket) if socket else None
