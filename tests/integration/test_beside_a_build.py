"""What is started beside a run that is building leaves that run's gates to it: a refusal is shown as a refusal."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from tests.conftest import BIN, ROOT, environment
from tests.integration.workspaces import Workspace, workspace

KEY = dg.AssetKey(["mine", "raw_corpus"])
STRICT = ("--set", "gates.raw_corpus.0.threshold=1e12")

# A job tells that it has begun, and waits until it may go on.
_SITE = """
import pathlib, sys, time
if sys.orig_argv[-3:-1] == ["-m", "training.run"]:
    folder = pathlib.Path({folder!r})
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Workspace:
    """A user whose raw_corpus is promoted, and whose notes have changed since."""
    made = workspace(tmp_path / "mine")
    done = made.run("--select", "raw_corpus")
    assert done.returncode == 0, done.stdout
    (made.notes / "more.txt").write_text("More text.\n" * 100)
    return made


@contextmanager
def building(space: Workspace, site: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run whose first job has begun; it goes on when the block ends."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SITE.format(folder=str(site)))
    command = [str(BIN / "gatehouse"), "run", "-r", str(space.recipe), *arguments]
    with (
        (site / "output.txt").open("w") as output,
        subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdout=output,
            stderr=output,
            env=environment(space.home, PYTHONPATH=str(site)),
        ) as process,
    ):
        try:
            while not (site / "begun").exists():
                assert process.poll() is None, (site / "output.txt").read_text()
                time.sleep(0.05)
            yield process
        finally:
            (site / "go").touch()


def test_a_refused_version_shows_its_gates_as_failed(
    mine: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with building(mine, tmp_path / "site", "--select", "raw_corpus", *STRICT) as first:
        for option, said in (
            ("--select=typo", "typo"),
            ("--set=raw_corpus.typo=1", "typo"),
            ("--launcher=typo", "typo"),
            ("--select=raw_corpus", "is being built by"),
        ):
            beside = mine.run(option)
            assert beside.returncode == 2 and said in beside.stdout, beside.stdout
            assert "Repaired" not in beside.stdout
    said = (tmp_path / "site" / "output.txt").read_text()
    assert first.returncode == 1 and "bytes" in said, said

    for name, value in environment(mine.home).items():
        monkeypatch.setitem(os.environ, name, value)
    with dg.DagsterInstance.get() as instance:
        assert verdicts(instance) == {"bytes": AssetCheckExecutionRecordStatus.FAILED}
    again = mine.run("--select", "corpus")
    assert "Repaired" not in again.stdout
    with dg.DagsterInstance.get() as instance:
        assert verdicts(instance) == {"bytes": AssetCheckExecutionRecordStatus.FAILED}


def verdicts(instance: dg.DagsterInstance) -> dict[str, AssetCheckExecutionRecordStatus]:
    """The gates that Dagster shows on the newest materialization; one that it shows as not evaluated is left out."""
    gate = dg.AssetCheckKey(KEY, "bytes")
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key([gate])
    context = LoadingContextForTest(instance)
    return {
        key.name: record.status
        for key, record in records.items()
        if asyncio.run(record.targets_latest_materialization(context))
    }
