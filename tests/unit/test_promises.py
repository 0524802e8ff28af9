"""What `make chaos` prints and what it does again, on three small tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.patience import run_command
from tests.promises import code_digest

pytestmark = pytest.mark.skipif(not code_digest(), reason="git cannot tell what the code is: not a checkout")

TESTS = """
import os
import pytest

@pytest.mark.promise("{name} holds")
@pytest.mark.parametrize("name", ["one", "two"])
def test_holds(promise, name):
    for trial in promise.trials(quick=1, full=3):
        with trial:
            print(f"{name} is tried")

@pytest.mark.promise("this one does not hold yet")
def test_breaks(promise):
    for trial in promise.trials(quick=1, full=3):
        with trial:
            if "STOP" in os.environ:
                raise KeyboardInterrupt
            assert trial.number != 1 or "MENDED" in os.environ
"""
OTHER = """
import pytest

@pytest.mark.promise("other holds")
def test_other(promise):
    for trial in promise.trials(quick=1, full=3):
        with trial:
            print("other is tried")
"""
HOLDS = ["| one holds | 3 | 0", "| two holds | 3 | 0"]


def chaos(folder: Path, *more: str, **extra: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_all.py").write_text(TESTS)
    return run_command(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.promises",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "-s",
            f"--rootdir={folder}",
            "--full",
            f"--table={folder / 'table.md'}",
            f"--kept={folder / 'kept.jsonl'}",
            *more,
        ],
        60,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **extra},
    )


def rows(folder: Path) -> list[str]:
    """Of the table, without the times."""
    return [line.rsplit(" | ", 1)[0] for line in (folder / "table.md").read_text().splitlines()[2:]]


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    first = chaos(tmp_path, "-n", "2")
    assert first.returncode == 1 and "1 of 3 trials broke the promise: this one does not hold yet" in first.stdout
    assert rows(tmp_path) == ["| this one does not hold yet | 3 | 1", *HOLDS]
    second = chaos(tmp_path, MENDED="1")
    assert second.returncode == 0 and "is tried" not in second.stdout, second.stdout
    assert rows(tmp_path) == ["| this one does not hold yet | 3 | 0", *HOLDS]
    third = chaos(tmp_path)
    assert third.returncode == 0 and "3 deselected" in third.stdout, third.stdout
    assert len(rows(tmp_path)) == 3


def test_an_interrupted_run_leaves_no_table(tmp_path: Path) -> None:
    stopped = chaos(tmp_path, STOP="1")
    assert stopped.returncode == 2 and "| one holds | 3 | 0" in stopped.stdout, stopped.stdout
    assert not (tmp_path / "table.md").exists() and (tmp_path / "kept.jsonl").exists()


def test_other_code_and_what_was_cut_short_is_tried_again(tmp_path: Path) -> None:
    chaos(tmp_path)
    kept = tmp_path / "kept.jsonl"
    one, two = kept.read_text().split("\n\n")
    kept.write_text(one.replace('{"code": "', '{"code": "0') + "\n" + two[:30])
    assert chaos(tmp_path).stdout.count("is tried") == 6
    assert chaos(tmp_path).stdout.count("is tried") == 0
    (tmp_path / "test_other.py").write_text(OTHER)
    assert chaos(tmp_path).stdout.count("is tried") == 3, "only the new module's"
    (tmp_path / "test_other.py").write_text(OTHER.replace("other", "another"))
    assert chaos(tmp_path).stdout.count("another is tried") == 3
    assert rows(tmp_path) == ["| this one does not hold yet | 3 | 1", *HOLDS, "| another holds | 3 | 0"]
