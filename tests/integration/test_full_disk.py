"""A state folder that runs full in the middle of a run: one message, and the next run closes what was left open."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.conftest import environment
from tests.integration.workspaces import Workspace, workspace


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Workspace]:
    """A user whose state has a small disk of its own."""
    made = workspace(tmp_path / "mine")
    made.home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=755", "tmpfs", str(made.home)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a filesystem: {mounted.stderr.strip()}")
    yield made
    subprocess.run(["umount", "--lazy", str(made.home)], check=True)


def statuses(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How Dagster shows the runs, oldest first."""
    for name, value in environment(space.home).items():
        monkeypatch.setitem(os.environ, name, value)
    with dg.DagsterInstance.get() as instance:
        return [run.status.value for run in reversed(instance.get_runs())]


def test_a_full_disk_is_one_message_and_the_next_run_closes_the_one_it_stopped(
    small_disk: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small_disk.run("--select", "raw_corpus")
    assert first.returncode == 0, first.stdout
    room = os.statvfs(small_disk.home)
    (small_disk.home / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - 200_000))

    full = small_disk.run("--select", "raw_corpus")
    assert full.returncode == 2, full.stdout
    assert full.stdout.count(f"error: {small_disk.home}: the disk is full, ") == 1 and "kB are free" in full.stdout
    assert "Traceback" not in full.stdout and len(full.stdout.splitlines()) < 15, full.stdout

    (small_disk.home / "filler").unlink()
    again = small_disk.run("--select", "raw_corpus")
    assert again.returncode == 0, again.stdout
    assert "ended unexpectedly; it is marked as failed" in again.stdout
    assert statuses(small_disk, monkeypatch) == ["SUCCESS", "FAILURE", "SUCCESS"]
