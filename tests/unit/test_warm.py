"""Forked commands and jobs are to those who start them what real ones are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import warm
from tests.conftest import BIN, ROOT, environment


def test_a_command_has_the_environment_it_is_given(tmp_path: Path) -> None:
    command = [str(BIN / "gatehouse"), "recipe", "show"]
    shown = warm.run_command(command, cwd=ROOT, env=environment(tmp_path / "home", GATEHOUSE_RECIPE="smoke"))
    assert shown.returncode == 0 and "name: smoke" in shown.stdout
    wrong = warm.run_command(command, cwd=ROOT, env=environment(tmp_path / "home", GATEHOUSE_RECIPE="smokee"))
    assert wrong.returncode == 2 and "did you mean smoke?" in wrong.stdout


def start(job: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_job_that_is_wrong_ends_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    with warm.warm_jobs(), start(tmp_path / "job.json") as job:
        assert job.stdout is not None and b"Invalid JSON" in job.stdout.read()
    assert job.returncode == 2
