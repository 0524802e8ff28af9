"""Jobs as processes of this machine: each is one process group under a supervisor, and none outlives its owner."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

from pipeline.jobs import orphans
from pipeline.jobs.attempt import JOB_FILE, OUTPUT_FILE
from pipeline.jobs.locks import LOCK_FILE
from pipeline.paths import DATABASES, ROOT, variables
from training.specs.execution import Launcher as LauncherEntry
from training.specs.job import Job

# Addresses and passwords of the control plane: what a job does not hold it cannot write down.
_NOT_FOR_JOBS = {
    *DATABASES,
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
}
_SUPERVISOR_SECONDS = 10  # that a supervisor gets beyond the grace period, to kill and to collect


class LocalLauncher:
    """Runs jobs as processes of this machine.

    Args:
        entry: Its entry of launchers.yaml.
    """

    def __init__(self, entry: LauncherEntry) -> None:
        self.entry = entry

    def submit(self, job: Job) -> LocalJob:
        """Start a job's supervisor, and under it the job."""
        attempt, grace = Path(job.attempt), self.entry.grace_seconds
        lock = attempt.parent / LOCK_FILE
        command = [sys.executable, "-m", "training.job.supervisor", str(grace), *_command(job, attempt, grace)]
        owner = orphans.ownership_env(lock, job.labels.get("dagster_run_id", ""), grace)

        with (attempt / OUTPUT_FILE).open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=job_environment() | owner,
                stdin=subprocess.PIPE,  # its end of file tells the supervisor that this process is gone
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal reaches the owner alone, which then ends the job
            )
        return LocalJob(process, lock, grace)

    def adopt(self, job: Job) -> None:
        """None: whoever takes the asset's lock ends what a killed owner left running (`locks.building`)."""


class LocalJob:
    """A supervisor and all below it.

    Args:
        process: The supervisor.
        lock: The asset's lock, which its processes name as their owner's.
        grace: Seconds that they get to end by themselves.
    """

    def __init__(self, process: subprocess.Popen[bytes], lock: Path, grace: float) -> None:
        self._process = process
        self._lock = lock
        self._grace = grace

    def poll(self) -> int | None:
        """The job's exit code; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """End the job: its supervisor ends everything below it, and itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(self._grace + _SUPERVISOR_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

        if self._process.returncode < 0:  # it was killed, so it could not end what it supervised
            orphans.end(self._lock)


def _command(job: Job, attempt: Path, grace: float) -> list[str]:
    run = ["-m", "training.run", str(attempt / JOB_FILE)]
    if job.execution.processes == 1:
        return [sys.executable, *run]

    torchrun = [
        "--nnodes=1",
        f"--nproc-per-node={job.execution.processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        f"--shutdown-timeout={math.ceil(grace)}",  # else it kills its ranks after 30 seconds
    ]
    return [sys.executable, "-m", "torch.distributed.run", *torchrun, *run]


def job_environment() -> dict[str, str]:
    """What a process that loads torch is given: no address and no password of the control plane."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    inherited = {name: value for name, value in (os.environ | variables()).items() if name not in _NOT_FOR_JOBS}

    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "GATEHOUSE_SUPERVISED": "1",  # the ranks then ask the kernel to die with their parent
        "OMP_WAIT_POLICY": "passive",  # measured in training/engine/__init__.py
        "GOMP_SPINCOUNT": "1000",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
