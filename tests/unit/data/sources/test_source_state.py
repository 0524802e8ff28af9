"""The digest of the sources' state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from training.data.sources.source_state import describe_source, source_state
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


def test_a_write_that_sets_the_time_of_change_back_is_seen(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    path = tmp_path / "texts" / "a.txt"
    path.write_text("the year 2023")
    before, first = path.stat(), state(tmp_path)
    path.write_text("the year 2024")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = state(tmp_path)
    assert second != first

    (tmp_path / "b.txt").write_text("the year 2025")
    os.utime(tmp_path / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "b.txt").replace(path)
    assert state(tmp_path) not in (first, second)


def test_the_standard_library_is_the_same_wherever_it_was_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states = set()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.py").write_text("x = 1")
        os.utime(tmp_path / place / "a.py", ns=(5, 5))
        monkeypatch.setattr("sysconfig.get_paths", lambda place=place: {"stdlib": str(tmp_path / place)})
        states.add(source_state([Source(name="s", stdlib=True)], tmp_path))
    assert len(states) == 1


def test_a_dataset_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    states = {
        source_state([Source(name="s", dataset="some/where", revision=revision)], tmp_path)
        for revision in (COMMIT, COMMIT[::-1])
    }
    assert len(states) == 2
    with pytest.raises(SourceError, match="revision must be the commit"):
        source_state([Source(name="s", dataset="some/where", revision="main")], tmp_path)


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="texts does not exist"):
        state(tmp_path)


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; import training.data.sources.source_state; "
        "print({'pyarrow', 'datasets', 'numpy', 'zstandard'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4]
    )
    assert done.stdout.strip() == "set()"


def test_a_source_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x" * 1_500_000)
    assert describe_source(Source(name="s", path="texts"), tmp_path) == "s: 1 file, 1.5 MB"
    (tmp_path / "texts" / "b.pdf").write_bytes(b"x")
    assert describe_source(Source(name="s", path="texts"), tmp_path) == "s: 1 file, 1.5 MB; left out: 1 .pdf"
    source = Source(name="s", path="texts", exclude=("*.pdf", "drafst/*"), domains={"a": ("a*",), "b": ("b/*",)})
    assert describe_source(source, tmp_path) == "s: 1 file, 1.5 MB; left out: 1 excluded; no file matches drafst/*, b/*"
    hub = Source(name="s", dataset="some/where", revision=COMMIT)
    assert describe_source(hub, tmp_path) == "s: the dataset some/where at 0123456789ab"
