"""The digest of the sources' state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.data.source_state import format_of, matches, source_state
from training.errors import SourceError
from training.specs.raw_corpus import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def state(base: Path) -> str:
    return source_state([Source(name="s", path="texts")], base)


def test_it_follows_names_sizes_and_times(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    seen = [state(tmp_path)]
    assert state(tmp_path) == seen[0]
    (folder / "unrelated.png").write_bytes(b"x")
    assert state(tmp_path) == seen[0]
    (folder / "b.txt").write_text("two")
    seen.append(state(tmp_path))
    (folder / "b.txt").rename(folder / "c.txt")
    seen.append(state(tmp_path))
    os.utime(folder / "c.txt", ns=(0, 1))
    seen.append(state(tmp_path))
    assert len(set(seen)) == len(seen)


def test_it_does_not_depend_on_where_the_files_are(tmp_path: Path) -> None:
    for base in ("one", "two"):
        (tmp_path / base / "texts").mkdir(parents=True)
        (tmp_path / base / "texts" / "a.txt").write_text("x")
        os.utime(tmp_path / base / "texts" / "a.txt", ns=(5, 5))
    assert state(tmp_path / "one") == state(tmp_path / "two")


def test_a_dataset_is_known_by_its_commit(tmp_path: Path) -> None:
    states = {source_state([Source(name="s", dataset="some/where", revision=revision)], tmp_path)
              for revision in (COMMIT, COMMIT[::-1])}
    assert len(states) == 2
    with pytest.raises(SourceError, match="revision must be the commit"):
        source_state([Source(name="s", dataset="some/where", revision="main")], tmp_path)


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="texts does not exist"):
        state(tmp_path)


def test_it_imports_nothing_heavy() -> None:
    code = ("import sys; import training.data.source_state; "
            "print({'pyarrow', 'daft', 'datasets', 'numpy', 'zstandard'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("name", "format_"), [("a.jsonl.gz", ".jsonl"), ("a.b.txt", ".txt"), ("a.py.zst", ".py"),
                                               ("a.parquet.gz", ""), ("a.tar.gz", ""), ("a", "")])
def test_formats(name: str, format_: str) -> None:
    assert format_of(name) == format_


@pytest.mark.parametrize(("name", "glob", "expected"), [
    ("a/b/c.py", "a/*", True), ("b/a.py", "a/*", False), ("x.py", "**/x.py", True), ("a/x.py", "**/x.py", True),
    ("X.py", "x.py", False)])
def test_globs(name: str, glob: str, expected: bool) -> None:
    assert matches(name, [glob]) is expected
