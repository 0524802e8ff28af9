"""The end of runs whose process is gone: after a SIGKILL or a power cut Dagster would show them as running for ever."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from pipeline.locks import is_dead

_UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def reap(instance: dg.DagsterInstance, runs: Path) -> list[str]:
    """Mark every unfinished run as failed whose process has ended, so that nothing waits for it.

    Its job needs no reaping: the supervisor ends it with the process that started it.

    Args:
        instance: Where the runs are recorded.
        runs: Folder of the locks by which runs show that they are alive.

    Returns:
        Ids of the runs that were ended.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        if is_dead(runs, run.run_id):
            instance.report_run_failed(run, "The process of this run has ended without a word: it was killed, or the "
                                            "machine went down. Start it again; it goes on from its last checkpoint.")
            (runs / f"{run.run_id}.lock").unlink(missing_ok=True)
            ended.append(run.run_id)
    return ended
