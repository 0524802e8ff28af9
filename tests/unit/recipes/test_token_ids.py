"""Sources of token ids in a recipe: what they need, what they forbid, and what they decide."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.building.planner import plan_asset
from pipeline.cli.data import _source_request
from pipeline.recipes.loader import load_recipe, render
from pipeline.workspace import Workspace
from tests.foreign import byte_level, save_tokenizer
from training.errors import RecipeError
from training.specs.raw_corpus import RawCorpusSection
from training.store.store import Store

IDS = "sources: [{name: a, path: ids, input_ids: input_ids}, {name: b, path: texts}]\n"
FROM = "tokenizer: {from: words}\n"


def recipe(folder: Path, *parts: str) -> Path:
    if not (folder / "words").exists():
        for name in ("ids", "texts"):
            (folder / name).mkdir()
        (folder / "ids" / "a.npy").write_bytes(b"not read here")
        (folder / "texts" / "a.txt").write_text("a text")
        save_tokenizer(byte_level(), folder / "words", eos_token="<|endoftext|>")
    path = folder / "mine.yaml"
    path.write_text("".join(["extends: tiny\nname: mine\n", *parts]))
    return path


def problem(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    return str(caught.value)


def test_they_need_an_imported_tokenizer(tmp_path: Path) -> None:
    message = problem(recipe(tmp_path, IDS))
    assert "mine.yaml:3: sources.0.input_ids: token ids say nothing without the tokenizer that made them" in message
    assert "name it as tokenizer.from" in message


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("text_column: body", "text_column"),
        ("text_format: html", "text_format"),
        ("text_suffixes: ['.c']", "text_suffixes"),
    ],
)
def test_what_is_said_of_texts_is_refused(tmp_path: Path, other: str, name: str) -> None:
    source = f"sources: [{{name: a, path: ids, input_ids: ids, {other}}}]\n"
    assert f"a source of token ids has no {name}; leave one of them out" in problem(recipe(tmp_path, FROM, source))


def test_the_section_names_the_tokenizer(tmp_path: Path) -> None:
    loaded = load_recipe(str(recipe(tmp_path, FROM, IDS))).recipe
    section = loaded.section("raw_corpus")
    assert isinstance(section, RawCorpusSection) and section.tokenizer is not None
    assert section.tokenizer.from_ == str(tmp_path / "words")
    assert RawCorpusSection.model_validate(section.model_dump(mode="json")) == section
    assert section.identity_fields()["tokenizer"] == {"imported": True}


def test_a_recipe_of_texts_is_written_as_before(tmp_path: Path) -> None:
    texts = "sources: [{name: b, path: texts}]\n"
    dumped = load_recipe(str(recipe(tmp_path, FROM, texts))).recipe.section("raw_corpus").model_dump(mode="json")
    assert "tokenizer" not in dumped and "input_ids" not in dumped["sources"][0]


def test_another_tokenizer_gathers_them_again_and_its_place_does_not(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "mine")

    def identity(*parts: str) -> str:
        return plan_asset("raw_corpus", load_recipe(str(recipe(tmp_path, *parts))), store).identity

    before, of_texts = identity(FROM, IDS), identity(FROM, "sources: [{name: b, path: texts}]\n")
    shutil.copytree(tmp_path / "words", tmp_path / "elsewhere")
    assert identity("tokenizer: {from: elsewhere}\n", IDS) == before
    save_tokenizer(byte_level(size=280), tmp_path / "words", eos_token="<|endoftext|>")
    assert identity(FROM, IDS) != before
    assert identity(FROM, "sources: [{name: b, path: texts}]\n") == of_texts


def test_a_rendered_recipe_is_the_same(tmp_path: Path) -> None:
    loaded = load_recipe(str(recipe(tmp_path, FROM, IDS)))
    (tmp_path / "again.yaml").write_text(render(loaded.recipe))
    assert load_recipe(str(tmp_path / "again.yaml")).recipe == loaded.recipe


def test_a_preview_gets_the_tokenizer(tmp_path: Path) -> None:
    workspace = Workspace(str(recipe(tmp_path, FROM, IDS)))
    of_ids, of_texts = (_source_request(workspace, name, 1, 1) for name in ("a", "b"))
    assert of_ids is not None and of_ids.tokenizer is not None and of_ids.tokenizer.from_ == str(tmp_path / "words")
    assert of_texts is not None and of_texts.tokenizer is None
