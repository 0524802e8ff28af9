"""Real jobs that can be held, made stubborn and counted, by a `sitecustomize` that every Python of the job imports."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from tests.conftest import ROOT
from tests.patience import Patience

GRACE = 1.0
_CHAOS = "CHAOS"
# A job notes that it has started. A held one waits. A stubborn one ignores SIGTERM and SIGINT, has a child that does
# so too, and a grandchild that was forked twice into a session of its own.
_SITE = """
import os, sys
folder = os.environ.get("CHAOS")
if folder and sys.orig_argv[-3:-1] == ["-m", "training.run"] and not {
        "training.job.supervisor", "torch.distributed.run"} & set(sys.orig_argv):
    import signal, subprocess, time
    asset = sys.orig_argv[-1].split("/")[-3]
    os.environ["CHAOS_JOB"] = asset
    if os.path.exists(f"{folder}/stubborn"):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        subprocess.Popen(sleeper)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, sleeper)
            os._exit(0)
        os.wait()
    with open(f"{folder}/starts", "a") as starts:
        starts.write(f"{asset} {os.getpid()}\\n")
    held = f"{folder}/hold-{asset}"
    while os.path.exists(held):
        time.sleep(0.05)
"""


class Stand:
    """A folder of switches for the jobs that are started with its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(_SITE)

    @property
    def environment(self) -> dict[str, str]:
        """What has to be in the environment of whoever starts jobs."""
        return {_CHAOS: str(self.folder), "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}"}

    def hold(self, asset: str) -> None:
        """The jobs of an asset wait from now on."""
        (self.folder / f"hold-{asset}").touch()

    def release(self, asset: str) -> None:
        """They go on."""
        (self.folder / f"hold-{asset}").unlink(missing_ok=True)

    def stubborn(self, wanted: bool = True) -> None:
        """Jobs that start from now on don't end by themselves, or do again."""
        (self.folder / "stubborn").touch() if wanted else (self.folder / "stubborn").unlink(missing_ok=True)

    @property
    def is_stubborn(self) -> bool:
        """Whether jobs that start now don't end by themselves."""
        return (self.folder / "stubborn").exists()

    def starts(self, asset: str) -> int:
        """How often a job of an asset was started."""
        path = self.folder / "starts"
        return sum(line.split()[0] == asset for line in path.read_text().splitlines()) if path.exists() else 0

    def forget_starts(self) -> None:
        """Count from here."""
        (self.folder / "starts").unlink(missing_ok=True)

    def await_start(
        self, asset: str, before: int, owner: subprocess.Popen[str] | None = None, seconds: float = 120
    ) -> None:
        """Wait until an asset's job has started once more than `before`."""

        def started() -> bool:
            assert owner is None or owner.poll() is None, "the owner of the job has ended"
            return self.starts(asset) > before

        until(started, seconds, f"no job of {asset}")

    def processes(self) -> list[psutil.Process]:
        """Living processes of jobs: supervisors, ranks, and all they started."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.get(_CHAOS) != str(self.folder) or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if "CHAOS_JOB" in environment or "training.run" in process.cmdline():
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def supervisor(self) -> psutil.Process:
        """The supervisor of the one job that runs."""
        [found] = [process for process in self.processes() if "training.job.supervisor" in process.cmdline()]
        return found

    def job(self) -> psutil.Process:
        """The process of the one job that runs."""
        [found] = [process for process in self.supervisor().children() if "training.run" in process.cmdline()]
        return found

    def assert_all_end(self, seconds: float) -> float:
        """Wait until no process of a job is left, and return how long that took; kill and fail if some stay."""
        patience = Patience(seconds)
        while left := self.processes():
            if patience.is_over():
                told = [process.as_dict(["pid", "ppid", "cmdline"]) for process in left if process.is_running()]
                self.clear()
                raise AssertionError(f"alive after {seconds} s: {told}")
            time.sleep(0.05)
        return patience.spent

    def clear(self) -> None:
        """Leave nothing running behind a test that failed."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def alive(processes: Iterable[psutil.Process]) -> list[int]:
    """Numbers of those that are alive."""
    return sorted(
        process.pid for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    )


def until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait for a condition, or fail."""
    patience = Patience(seconds)
    while not condition():
        assert not patience.is_over(), otherwise
        time.sleep(0.05)
