"""No process of a job outlives its owner, however the owner ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.patience import finish, wait_for

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                          "time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""

OWNER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
process = subprocess.Popen([sys.executable, "-m", "training.job.supervisor", "1", sys.executable, "-c", sys.argv[1],
                            sys.argv[2]], stdin=subprocess.PIPE, start_new_session=True)
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> tuple[subprocess.Popen[str], int, list[int]]:
    """An owner, its supervisor's pid, and the pids of a stubborn job and of its grandchild in another session."""
    pids = tmp_path / "pids"
    process = subprocess.Popen([sys.executable, "-c", OWNER, STUBBORN, str(pids)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    supervisor = int(process.stdout.readline())
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, 20, "the job did not start")
    return process, supervisor, [int(pid) for pid in pids.read_text().split()]


def alive(pids: list[int]) -> list[int]:
    living = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                living.append(pid)
        except psutil.NoSuchProcess:
            continue
    return living


def assert_all_end(pids: list[int], seconds: float) -> None:
    wait_for(lambda: not alive(pids), seconds, lambda: f"{alive(pids)} do not end")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_owner(owner: tuple[subprocess.Popen[str], int, list[int]], number: int) -> None:
    process, supervisor, pids = owner
    assert len(alive(pids)) == 2
    process.send_signal(number)
    assert_all_end([*pids, supervisor], seconds=6)
    process.wait()


def test_the_job_does_not_outlive_its_supervisor(owner: tuple[subprocess.Popen[str], int, list[int]]) -> None:
    process, supervisor, pids = owner
    os.kill(supervisor, signal.SIGKILL)
    assert_all_end(pids[:1], seconds=3)
    process.kill()
    process.wait()
    psutil.Process(pids[1]).kill()


def test_a_term_to_the_supervisor_ends_the_job(owner: tuple[subprocess.Popen[str], int, list[int]]) -> None:
    process, supervisor, pids = owner
    os.kill(supervisor, signal.SIGTERM)
    assert_all_end([*pids, supervisor], seconds=6)
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(75)", 75), ("raise SystemExit(0)", 0), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_code_is_the_jobs(code: str, expected: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "training.job.supervisor", "1", sys.executable, "-c", code], stdin=subprocess.PIPE
    )
    assert finish(process, 20) == expected


def test_what_a_job_leaves_behind_has_the_grace_period_too(tmp_path: Path) -> None:
    """As Dagster's servers leave runs behind, which have a checkpoint to save."""
    slow = (
        "import signal, sys, time; from pathlib import Path; signal.signal(signal.SIGTERM, lambda *_: "
        "(time.sleep(1.5), Path(sys.argv[1]).touch(), sys.exit())); Path(sys.argv[2]).touch(); time.sleep(60)"
    )
    leaves = (
        "import subprocess, sys, time; from pathlib import Path; subprocess.Popen([sys.executable, '-c', "
        "*sys.argv[1:]], start_new_session=True)\nwhile not Path(sys.argv[3]).exists(): time.sleep(0.05)"
    )
    saved = tmp_path / "saved"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "training.job.supervisor",
            "10",
            sys.executable,
            "-c",
            leaves,
            slow,
            str(saved),
            str(tmp_path / "ready"),
        ],
        stdin=subprocess.PIPE,
    )
    assert finish(process, 20) == 0
    assert saved.exists()
