"""A run whose process is killed does not stay `started` for ever; one that is alive is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipeline.reaper import reap

_RUN = """
import sys, time
from pathlib import Path
import dagster as dg
from pipeline.locks import mark_alive

@dg.op
def wait(context) -> None:
    mark_alive(Path(sys.argv[1]), context.run_id)
    print("started", flush=True)
    time.sleep(60)

@dg.job
def waiting():
    wait()

waiting.execute_in_process(instance=dg.DagsterInstance.get())
"""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return dg.DagsterInstance.get()


def test_only_the_dead_are_reaped(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(runs)], stdout=subprocess.PIPE, text=True,
                               env=os.environ)
    try:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        [run] = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        assert reap(instance, runs) == []
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        assert reap(instance, runs) == [run.run_id]
        found = instance.get_run_by_id(run.run_id)
        assert found is not None and found.status == dg.DagsterRunStatus.FAILURE
        assert reap(instance, runs) == []
    finally:
        process.kill()


def test_a_run_that_never_marked_itself_is_left_alone(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
    assert reap(instance, tmp_path / "runs") == []
    found = instance.get_run_by_id(run.run_id)
    assert found is not None and found.status == dg.DagsterRunStatus.STARTED


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None:
        """Has no work."""

    @dg.job
    def idle() -> None:
        nothing()

    return idle
