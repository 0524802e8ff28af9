"""What is shown on terminals and in files that cannot take every character, or nothing at all."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.cli.console import RunDisplay
from pipeline.cli.terminal import legible_environment, make_legible
from pipeline.jobs import local, progress
from pipeline.jobs.attempt import OutputTail
from tests.conftest import ROOT

BUILT = [{"kind": "state", "state": "built", "version": "20261129T011748"}]
REFUSED = [{"kind": "state", "state": "refused", "version": "20261129T011748"}]


@pytest.mark.parametrize(("encoding", "name"), [("ascii", "\\xfcber.txt"), ("latin-1", "über.txt")])
def test_marks_are_replaced_where_the_terminal_lacks_them(
    monkeypatch: pytest.MonkeyPatch, encoding: str, name: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    make_legible()
    display = RunDisplay(Console(width=100))
    with progress.displayed(display):
        progress.show("corpus", BUILT)
        progress.show("corpus", REFUSED)
    print("read über.txt … 3 ≥ 2 \udcff 中")
    lines = written.getvalue().decode(encoding).splitlines()
    assert lines[0].split() == ["corpus", "ok", "built"]
    assert lines[1].split() == ["corpus", "x", "refused", "by", "its", "gates"]
    assert lines[2] == f"read {name} ... 3 >= 2 \\udcff \\u4e2d"


@pytest.mark.parametrize(
    ("total", "shown"),
    [(2_000_000, "1,500,000/2,000,000 documents  68 MB  ETA 0 s"), (None, "1,500,000 documents  68 MB")],
)
def test_a_part_without_a_known_end_has_no_eta(total: int | None, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cli.console._LINE_SECONDS", 0)
    written = io.StringIO()
    display = RunDisplay(Console(file=written, width=100))
    display(
        "raw_corpus",
        [
            {"kind": "phase", "name": "read notes"},
            {"kind": "progress", "done": 1_500_000, "total": total, "unit": "documents", "note": "68 MB"},
        ],
    )
    assert written.getvalue() == f"  raw_corpus read notes: {shown}\n"


def test_utf_8_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", write_through=True))
    make_legible()
    print("✓ über 中")
    assert written.getvalue().decode() == "✓ über 中\n"


def test_what_a_job_prints_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = subprocess.run(
        [sys.executable, "-c", "print('✓ über \\udcff')"],
        env=local.job_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.decode().strip() == "✓ über \\udcff"


@pytest.mark.parametrize(("given", "answer"), [("ascii", b"\\xfcber"), ("latin-1:strict", b"\xfcber \\u2713")])
def test_an_answer_is_escaped_where_the_terminal_lacks_it(
    monkeypatch: pytest.MonkeyPatch, given: str, answer: bytes
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", given)
    done = subprocess.run(
        [sys.executable, "-c", "print('über ✓')"],
        env=os.environ | legible_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.startswith(answer)


def test_the_variables_of_a_shell_name_paths_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("GATEHOUSE_HOME", str(tmp_path / "über"))
    done = subprocess.run([sys.executable, "-m", "pipeline.paths"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert f"export GATEHOUSE_HOME='{tmp_path}/über'" in done.stdout.decode()


def test_output_that_cannot_be_passed_on_ends_no_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.touch()
    tail = OutputTail(output, forward=True)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    for line in ("one\n", "two\n"):
        output.write_text(output.read_text() + line)
        tail.forward()
    assert tail.end() == "one\ntwo"


def test_a_process_without_standard_output_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    make_legible()
    assert sys.stdout is None


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(32, "Broken pipe"),
        OSError(28, "No space left on device"),
        UnicodeEncodeError("ascii", "✓", 0, 1, "ordinal not in range(128)"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_what_cannot_be_shown_fails_no_step_and_is_logged_once(
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown: list[str] = []

    def broken(_asset: str, _events: list[dict[str, Any]]) -> None:
        raise error

    def whole(asset: str, _events: list[dict[str, Any]]) -> None:
        shown.append(asset)

    with caplog.at_level(logging.WARNING, "gatehouse"), progress.displayed(broken), progress.displayed(whole):
        progress.show("corpus", BUILT)
        progress.show("tokenizer", BUILT)
    assert shown == ["corpus", "tokenizer"]
    [record] = caplog.records
    assert "progress cannot be shown" in record.getMessage()
    assert not progress.is_displayed()


def test_a_fault_of_a_display_is_not_hidden() -> None:
    def faulty(_asset: str, _events: list[dict[str, Any]]) -> None:
        raise KeyError("versions")

    with progress.displayed(faulty), pytest.raises(KeyError):
        progress.show("corpus", BUILT)
