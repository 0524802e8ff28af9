"""A recipe's `code`: which assets it decides, and what is said of it before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.building.code_change import explain_change
from pipeline.building.planner import Plan, plan_asset
from pipeline.recipes.loader import load_recipe, render
from tests.unit.data.tokens.parts import artifact
from training.errors import InputRefused, RecipeError
from training.store.store import Store

CODE = """from training.custom import document_filter, document_source
raise RuntimeError("it was imported")


@document_filter
def short(document):
    return True


@document_source
def tickets():
    yield "x"
"""
SOURCE = "sources: [{name: a, function: tickets}]\n"
FILTER = "corpus: {rules: {filters: [short]}}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def recipe(folder: Path, *parts: str, code: str = CODE) -> Path:
    write(folder / "mine.py", code)
    return write(folder / "mine.yaml", "".join(["extends: tiny\nname: mine\n", *parts]))


def read_files(path: Path) -> None:
    loaded = load_recipe(str(path))
    for asset in loaded.graph:
        loaded.files(asset)


def problem(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_files(path)
    return str(caught.value)


def test_only_the_assets_that_use_it_depend_on_it(tmp_path: Path) -> None:
    loaded = load_recipe(str(recipe(tmp_path, "code: mine.py\n", SOURCE, FILTER)))
    files = {asset: loaded.files(asset) for asset in loaded.graph}
    assert {asset for asset, named in files.items() if "code" in named} == {"raw_corpus", "corpus"}
    assert files["corpus"]["code"] == tmp_path / "mine.py"
    only = load_recipe(str(recipe(tmp_path, "code: mine.py\n", FILTER)))
    assert {asset for asset in only.graph if "code" in only.files(asset)} == {"corpus"}


def test_another_line_of_it_is_another_identity_of_what_uses_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "mine")

    def plan(code: str, *parts: str) -> Plan:
        return plan_asset("raw_corpus", load_recipe(str(recipe(tmp_path, *parts, code=code))), store)

    def identity(code: str, *parts: str) -> str:
        return plan(code, *parts).identity

    changed = CODE.replace('yield "x"', 'yield "y"')
    assert identity(CODE, "code: mine.py\n", SOURCE) != identity(changed, "code: mine.py\n", SOURCE)
    before, after = plan(CODE, "code: mine.py\n", SOURCE), plan(changed, "code: mine.py\n", SOURCE)
    shown = artifact(tmp_path / "made", "raw_corpus").manifest.model_copy(
        update={"section": before.section, "fingerprint": before.fingerprint, "seed": before.seed}
    )
    assert explain_change(after, shown) == "changed: source files, the recipe's own code or safety prompts"
    plain = identity(CODE)
    assert identity(CODE, "code: mine.py\n", FILTER) == identity(changed, "code: mine.py\n", FILTER) == plain
    with pytest.raises(InputRefused):
        plan_asset("corpus", load_recipe(str(recipe(tmp_path, "code: mine.py\n", FILTER))), store)


def test_it_is_inherited_from_the_folder_that_wrote_it(tmp_path: Path) -> None:
    recipe(tmp_path, "code: mine.py\n", FILTER)
    child = write(tmp_path / "deep" / "child.yaml", "extends: ../mine.yaml\nname: child\n")
    code = load_recipe(str(child)).recipe.code
    assert code is not None and Path(code).resolve() == tmp_path / "mine.py"
    assert load_recipe(str(child)).files("corpus")["code"].resolve() == tmp_path / "mine.py"


def test_a_rendered_recipe_is_the_same(tmp_path: Path) -> None:
    loaded = load_recipe(str(recipe(tmp_path, "code: mine.py\n", SOURCE, FILTER)))
    again = load_recipe(str(write(tmp_path / "again.yaml", render(loaded.recipe))))
    assert again.recipe == loaded.recipe


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("code: nothing.py\n", FILTER), "mine.yaml:3: code: there is no file"),
        (
            ("code: mine.py\n", "corpus: {rules: {filters: [shrt]}}\n"),
            "mine.yaml:4: corpus.rules.filters.0: {folder}/mine.py has no function shrt with @document_filter; did you "
            "mean short?",
        ),
        (
            ("code: mine.py\n", "corpus: {rules: {filters: [tickets]}}\n"),
            "has no function tickets with @document_filter; those there are short",
        ),
        (
            ("code: mine.py\n", "sources: [{name: a, function: short}]\n"),
            "mine.yaml:4: sources.0.function: {folder}/mine.py has no function short with @document_source",
        ),
        ((FILTER,), "corpus.rules.filters.0: short is a function of the recipe's own code; name its file in `code`"),
        ((SOURCE,), "sources.0.function: tickets is a function of the recipe's own code; name its file in `code`"),
        (("code: mine.py\n",), "code: nothing of it is used"),
        (
            ("code: mine.py\n", "sources: [{name: a, function: tickets, stdlib: true}]\n"),
            "give exactly one of path, stdlib, function and dataset (given: stdlib, function)",
        ),
        (("code: mine.py\n", "corpus: {rules: {filters: [a b]}}\n"), "corpus.rules.filters.0"),
    ],
)
def test_what_is_wrong_with_it_is_said_before_anything_runs(
    tmp_path: Path, parts: tuple[str, ...], message: str
) -> None:
    assert message.replace("{folder}", str(tmp_path)) in problem(recipe(tmp_path, *parts)).replace(
        "../mine", f"{tmp_path}/mine"
    )


def test_a_file_that_is_no_python(tmp_path: Path) -> None:
    path = recipe(tmp_path, "code: mine.py\n", FILTER, code="def f(:\n")
    assert "mine.py:1: is not Python (invalid syntax); correct it" in problem(path)
