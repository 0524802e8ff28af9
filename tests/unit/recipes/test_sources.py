"""Where a recipe's sources are looked for, and what `gatehouse recipe check` says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli.recipe import check
from pipeline.cli.summary import show_sources
from pipeline.recipes.loader import load_recipe
from training.data.sources.source_files import list_source
from training.errors import SourceError

Write = Callable[..., Path]
MINE = "extends: tiny\nname: mine\nsources: [{name: notes, path: %s}]\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def paths(path: Path, *overrides: str) -> list[str | None]:
    return [source.path for source in load_recipe(str(path), overrides).recipe.sources]


def test_a_path_starts_at_the_folder_of_its_recipe(write: Write, tmp_path: Path) -> None:
    mine = write("mine.yaml", MINE % "notes")
    assert paths(mine) == [f"{tmp_path}/notes"]
    child = write("deep/child.yaml", "extends: ../mine.yaml\nname: child\n")
    assert [Path(path or "").resolve() for path in paths(child)] == [tmp_path / "notes"]
    own = write("deep/own.yaml", (MINE % "notes").replace("tiny", "../mine.yaml"))
    assert paths(own) == [f"{tmp_path}/deep/notes"]


def test_a_path_of_the_command_line_starts_at_the_working_directory(write: Write, tmp_path: Path) -> None:
    assert paths(write("mine.yaml", MINE % "notes"), "sources.0.path=more") == [f"{tmp_path}/elsewhere/more"]


@pytest.mark.parametrize("path", ["/texts", "~/texts", "$TEXTS/a", "${TEXTS}"])
def test_a_path_that_is_whole_stays_as_it_is_written(write: Write, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("TEXTS", "/texts")
    assert paths(write("mine.yaml", MINE % f'"{path}"')) == [path]


def test_a_folder_whose_name_looks_like_a_glob(write: Write, tmp_path: Path) -> None:
    write("[old]/notes/a.txt", "x")
    for path in ("notes", "notes/*.txt"):
        source = load_recipe(str(write("[old]/mine.yaml", MINE % f'"{path}"'))).recipe.sources[0]
        assert [file.path.name for file in list_source(source).files] == ["a.txt"]


def test_a_dataset_beside_the_recipe_is_a_folder_and_else_a_name_on_the_hub(write: Write, tmp_path: Path) -> None:
    text = "extends: tiny\nname: mine\nsources: [{name: a, dataset: set}, {name: b, dataset: some/where}]\n"
    write("set/train.jsonl", '{"text": "x"}\n')
    sources = load_recipe(str(write("mine.yaml", text))).recipe.sources
    assert [source.dataset for source in sources] == [f"{tmp_path}/set", "some/where"]


def test_check_says_what_is_read_and_what_is_left_out(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("notes/a.txt", "x" * 200_000)
    write("notes/b.pdf", "x")
    write("notes/c.txt", "")
    check(str(write("mine.yaml", MINE % "notes")), [])
    first, _, second = capsys.readouterr().out.splitlines()
    assert " 1 source, " in first and first.endswith(": good")
    assert second == "notes: 1 file, 0.2 MB; left out: 1 .pdf, 1 empty"


def test_check_refuses_sources_that_are_not_there(write: Write, tmp_path: Path) -> None:
    text = "extends: tiny\nname: mine\nsources: [{name: a, path: nowhere}, {name: b, path: no*}]\n"
    with pytest.raises(SourceError) as caught:
        check(str(write("mine.yaml", text)), [])
    assert str(caught.value).splitlines() == [
        f"source a: {tmp_path}/nowhere does not exist; correct its path in the recipe",
        f"source b: no file matches {tmp_path}/no*; correct its path in the recipe",
    ]


def test_the_end_of_a_run_shows_the_same(write: Write, tmp_path: Path) -> None:
    write("notes/a.txt", "x" * 1_500)
    write("notes/b.pdf", "x")
    console = Console(record=True, width=60)
    loaded = load_recipe(str(write("mine.yaml", MINE % "notes")))
    show_sources(loaded, console)
    (tmp_path / "notes" / "a.txt").unlink()
    show_sources(loaded, console)
    lines = console.export_text().splitlines()
    assert lines[0] == "notes: 1 file, 1.5 kB; left out: 1 .pdf"
    assert "holds no file to read (left out: 1 .pdf)" in lines[1]
