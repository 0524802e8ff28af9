"""Recipes and launchers: YAML to frozen specs. All mistakes are shown at once, each with its file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pipeline.graph import KINDS, Graph, graph_of, is_asset, kind_named
from pipeline.humanize import nearest
from pipeline.recipes.document import (
    KeyPath,
    Tree,
    deepest,
    dump_yaml,
    listed,
    lookup,
    merge,
    parse_yaml,
    read_yaml,
    shown,
    without,
)
from pipeline.recipes.errors import known_keys, mistakes, unknown_key
from pipeline.recipes.own_code import function_problems
from pipeline.recipes.source_paths import anchored
from training.errors import RecipeError
from training.specs.base_model import BUDGETS
from training.specs.evaluation_sets import EvaluationSetsSection
from training.specs.execution import Launcher
from training.specs.job import CODE
from training.specs.recipe import Recipe
from training.specs.tasks import Task, misfits, read_task_file
from training.specs.tokenizer import TokenizerSection

FOLDER = Path(__file__).resolve().parents[2] / "assets_config"
FOLDER_VARIABLE = "GATEHOUSE_RECIPES"
_LAUNCHERS = "launchers.yaml"
_SUFFIXES = (".yaml", ".yml")
# A recipe that extends another one is a recipe of its own: it never takes over the other's name.
_EXTENDS = "extends"
_BASES = "bases"
"""Folder of recipes that are not whole: others extend them."""
_OWN_KEYS = (_EXTENDS, "name", "description")
_ARCHITECTURE = ("base_model", "architecture")
_MODEL_TYPE = (*_ARCHITECTURE, "model_type")
_WITH_ORIGIN = ("base_model", "tokenizer")
_BUDGET = tuple(("base_model", name) for name in BUDGETS)
_NAME = re.compile(r"^name: *(\w+)", re.MULTILINE)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with the place it came from.

    Attributes:
        recipe: The recipe, every default filled in.
        path: The file that was asked for.
        document: Its values after `extends` and overrides, each with file and line.
    """

    recipe: Recipe
    path: Path
    document: Tree = field(repr=False, compare=False)

    @cached_property
    def graph(self) -> Graph:
        """The assets that the recipe's sections ask for, with what each is made from."""
        return graph_of(self.recipe)

    def files(self, asset: str) -> dict[str, Path]:
        """The files that an asset's section names: field, such as `harmful` or `tasks.0.file`, to existing file.

        A relative path is looked up in the recipe's folder, then in `assets_config/`. The recipe's own code is a file
        of the assets that are made with functions of it.

        Raises:
            RecipeError: A file is in neither place, or a local task's file is not one or does not fit the recipe; or
                the recipe's own code lacks a function.
        """
        section = self.recipe.section(asset)
        written: dict[KeyPath, str] = {(name,): getattr(section, name) for name in kind_named(asset).files}
        tasks = section.tasks if isinstance(section, EvaluationSetsSection) else ()
        if isinstance(section, TokenizerSection) and section.template_file is not None:
            written["template",] = section.template_file
        written |= {("tasks", index, "file"): task.file for index, task in enumerate(tasks) if task.file is not None}

        files: dict[str, Path] = {}
        problems = []
        for keys, value in written.items():
            path = self._find(value)
            if path is None:
                folders = " nor in ".join(dict.fromkeys((shown(self.path.parent), shown(FOLDER))))
                problems.append(self.at((*self.recipe.key(asset), *keys), f"there is no file {value!r} in {folders}"))
            else:
                files[".".join(map(str, keys))] = path

        for index, task in enumerate(tasks):
            if (path := files.get(f"tasks.{index}.file")) is not None:
                problems += self._misfits((asset, "tasks", index), task, path)

        if functions := self.recipe.functions(asset):
            code = self._find(self.recipe.code or "")
            if code is None:
                problems.append(self.at((CODE,), f"there is no file {self.recipe.code!r}"))
            else:
                files[CODE] = code
                problems += [self.at(key, message) for key, message in function_problems(code, functions)]

        if problems:
            raise RecipeError("\n".join(problems))
        return files

    def _misfits(self, keys: KeyPath, task: Task, path: Path) -> list[str]:
        try:
            file = read_task_file(Path(shown(path)))
        except RecipeError as error:
            return str(error).splitlines()

        return [self.at((*keys, *key.split(".")), message) for key, message in misfits(task, file)]

    def at(self, keys: KeyPath, message: str) -> str:
        """A message with the place of the key that it is about."""
        return f"{deepest(self.document, keys).where}: {'.'.join(map(str, keys))}: {message}"

    def _find(self, value: str) -> Path | None:
        path = Path(os.path.expandvars(value)).expanduser()
        return next((folder / path for folder in (self.path.parent, FOLDER) if (folder / path).is_file()), None)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe, the recipes it extends, and overrides such as `base_model.steps=200`.

    Args:
        name: A recipe's name, looked up in the folder `$GATEHOUSE_RECIPES` and then in `assets_config/`, or the path
            of a `.yaml` file.
        overrides: `dotted.path=value`; the value is read as YAML, a number in the path is the index of a list.

    Raises:
        RecipeError: There is no such recipe, or something in it is wrong; every problem is a line of the message.
    """
    path = _locate(name)
    problems: list[str] = []
    document = _extended(path, (), problems)

    for override in overrides:
        try:
            document = _override(document, override)
        except RecipeError as error:
            problems.append(str(error))
    document = anchored(document, Path.cwd())  # only an override's path can still be relative

    problems += _name_problems(path, document)
    return LoadedRecipe(_validate(Recipe, document, problems=problems), path, document)


def load_launchers(path: Path | None = None) -> dict[str, Launcher]:
    """The launchers of a file, by default `assets_config/launchers.yaml`.

    Raises:
        RecipeError: The file cannot be read or says something impossible.
    """
    document = read_yaml(path or FOLDER / _LAUNCHERS)
    launchers: dict[str, Launcher] = {}
    problems: list[str] = []

    for name, tree in document.value.items():
        stages = tree.child("stages")
        for asset, child in (stages.value if stages and isinstance(stages.value, dict) else {}).items():
            if not is_asset(asset):
                problems.append(f"{child.where}: {name}.stages.{asset}: there is no such asset{nearest(asset, KINDS)}")

        try:
            launchers[name] = _validate(Launcher, tree, name)
        except RecipeError as error:
            problems.append(str(error))

    if problems or not launchers:
        raise RecipeError("\n".join(problems) or f"{document.where}: no launcher is described here")
    return launchers


def available() -> list[str]:
    """Names of the recipes that can be given by name."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml") if path.name != _LAUNCHERS})


def render(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; loading the text gives the same recipe."""
    content = recipe.model_dump(mode="json")
    # Filled in from the sources by `Recipe.section`; a recipe file does not write them.
    del content["corpus"]["domains"], content["packed_shards"]["weights"]
    content["base_model"].pop("weights", None)
    return dump_yaml(content)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors.

    A section's required keys may stand in the recipe that this one extends. So they are demanded only of the items of
    lists, which are replaced whole.
    """
    schema = Recipe.model_json_schema()

    items = {part["items"].get("$ref") for part in _parts(schema) if isinstance(part.get("items"), dict)}
    for name, definition in schema["$defs"].items():
        if f"#/$defs/{name}" not in items:
            definition.pop("required", None)

    schema["properties"]["extends"] = {
        "type": "string",
        "title": "Extends",
        "description": "Name or path of the recipe whose values hold where this one says nothing.",
    }
    required = schema.pop("required")
    return schema | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Gatehouse recipe",
        "required": ["name"],
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": required},
    }


def _parts(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(part for child in value.values() for part in _parts(child))]
    return [part for child in value for part in _parts(child)] if isinstance(value, list) else []


def _folders() -> list[Path]:
    more = os.environ.get(FOLDER_VARIABLE)
    return [Path(more).expanduser(), FOLDER] if more else [FOLDER]


def _locate(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe.

    Args:
        name: A name, or a path.
        beside: Folder of the recipe that extends it, which is searched first.
    """
    if name.endswith(_SUFFIXES) or os.sep in name:
        path = (beside or Path()) / Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"{shown(path)}: {_no_file(path)}")
        return path

    folders = [beside, *_folders(), FOLDER / _BASES] if beside else _folders()
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file() and path.name != _LAUNCHERS:
            return path

    if (FOLDER / _BASES / f"{name}.yaml").is_file():
        raise RecipeError(
            f"{name} is a base to build on, and no whole recipe: write one with `extends: {name}`, a name and what "
            f"{shown(FOLDER / _BASES / f'{name}.yaml')} says at its head"
        )
    places = ", ".join(dict.fromkeys(shown(folder) for folder in folders))
    raise RecipeError(
        f"there is no recipe called {name!r} in {places}{nearest(name, available())}; the recipes are "
        f"{', '.join(available())}, or give the path of a .yaml file"
    )


def _no_file(path: Path) -> str:
    """Why a path is not that of a recipe."""
    if path.is_dir():
        return "this is a folder; give the path of a recipe, a .yaml file"
    try:
        path.stat()
    except FileNotFoundError:
        return "there is no such recipe file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "this is a pipe or a device; give the path of a recipe, a .yaml file"


def _name_problems(path: Path, document: Tree) -> Iterator[str]:
    """What is wrong with a recipe's name: under a shipped one it would share that recipe's store and experiment."""
    name = document.child("name")
    for shipped in sorted(FOLDER.glob("*.yaml")):
        written = _NAME.search(shipped.read_text(encoding="utf-8"))
        if name is not None and written and name.value == written[1] and path.resolve() != shipped.resolve():
            yield f"{name.where}: name: {name.value} is the name of {FOLDER.name}/{shipped.name}; choose another"


def _extended(path: Path, chain: tuple[Path, ...], problems: list[str]) -> Tree:
    """The document of a recipe merged over the recipes it extends.

    Args:
        chain: The files on the way here, for circles.
        problems: Gets what is wrong with how they extend each other, where reading can go on.
    """
    path = path.absolute()
    if path.resolve() in chain:
        circle = " -> ".join(step.name for step in (*chain, path))
        raise RecipeError(f"{shown(path)}: the recipes extend each other in a circle: {circle}")

    document = anchored(read_yaml(path), path.parent)
    extends = document.value.pop(_EXTENDS, None) or _misspelt_extends(document, problems)
    if extends is None:
        return document
    if not isinstance(extends.value, str):
        raise RecipeError(f"{extends.where}: extends: give the name of one recipe, such as tiny")
    try:
        parent = _locate(extends.value, path.parent)
    except RecipeError as error:
        raise RecipeError(f"{extends.where}: extends: {error}") from error

    base = _extended(parent, (*chain, path.resolve()), problems)
    inherited = {key: child for key, child in base.value.items() if key not in _OWN_KEYS}
    return _inherit(Tree(inherited, base.file, base.line), document)


def _misspelt_extends(document: Tree, problems: list[str]) -> Tree | None:
    """The value of a key that was meant as `extends`.

    Reading goes on with it: else every key that the other recipe gives would be called missing.
    """
    unknown = [key for key in document.value if key not in Recipe.model_fields]
    for key in get_close_matches(_EXTENDS, unknown, n=1, cutoff=0.7):
        written: Tree = document.value.pop(key)
        problems.append(f"{written.where}: {key}: there is no such key; did you mean {_EXTENDS}?")
        return written
    return None


def _inherit(base: Tree, top: Tree) -> Tree:
    """`top` over `base`. The architecture of another `model_type` inherits no field.

    Two kinds of model may name one thing differently. Where both names are given, transformers takes one of them
    silently. A section that names an origin inherits nothing either: its architecture and its steps were meant for a
    model that is made from nothing. One budget takes the place of another.
    """
    for section in _WITH_ORIGIN:
        origin = lookup(top, (section, "from"))
        inherited = lookup(base, (section,))
        if origin and origin.value is not None and inherited and inherited.child("from") is None:
            base = without(base, (section,))

    before, after = lookup(base, _MODEL_TYPE), lookup(top, _MODEL_TYPE)
    if before and after and before.value != after.value:
        base = without(base, _ARCHITECTURE)
    if any(lookup(top, key) for key in _BUDGET):
        base = _without_keys(base, _BUDGET)
    return merge(base, top)


def _without_keys(document: Tree, keys: Sequence[KeyPath]) -> Tree:
    """A document without those of the keys that it has."""
    for key in keys:
        if lookup(document, key):
            document = without(document, key)
    return document


def _override(document: Tree, override: str) -> Tree:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise RecipeError(f"override {override!r}: write it as key=value, such as base_model.steps=200")

    name = f"override {override}"
    new = parse_yaml(text, name)
    before = lookup(document, keys)
    replaced = _replace(document, keys, (), new, name)
    if keys == _MODEL_TYPE and before and before.value != new.value:
        return _only_overrides(replaced)
    if keys in _BUDGET:
        others = [key for key in _BUDGET if key != keys and (written := lookup(replaced, key)) and written.line]
        return _without_keys(replaced, others)  # those of files; two overrides are a mistake
    return replaced


def _only_overrides(document: Tree) -> Tree:
    """Of the architecture, only what the command line says: the rest is that of another kind of model."""
    architecture = lookup(document, _ARCHITECTURE)
    assert architecture is not None
    for key, child in architecture.value.items():
        if child.line:
            document = without(document, (*_ARCHITECTURE, key))
    return document


def _replace(tree: Tree, keys: tuple[str, ...], done: tuple[str, ...], new: Tree, name: str) -> Tree:
    """`tree` with the value under `keys` replaced; mappings that are missing on the way are made.

    Args:
        done: The keys that led to `tree`.
        name: What messages call the override.
    """
    if not keys:
        return _without_lines(new, name)

    key, path = keys[0], ".".join((*done, keys[0]))
    if isinstance(tree.value, list):
        child = tree.child(int(key)) if key.isdecimal() else None
        if child is None:
            raise RecipeError(f"{name}: {path}: this list has the items 0 to {len(tree.value) - 1}")
        items = list(tree.value)
        items[int(key)] = _replace(child, keys[1:], (*done, key), new, name)
        return Tree(items, tree.file, tree.line)

    existing = known_keys(Recipe, done)
    if existing is not None and key not in existing:
        raise RecipeError(f"{name}: {path}: {unknown_key(Recipe, (*done, key))}")
    if not isinstance(tree.value, dict):
        raise RecipeError(f"{name}: {path}: {'.'.join(done)} is a value, it has no keys")

    child = tree.value.get(key, Tree({}, name, 0))
    return Tree(tree.value | {key: _replace(child, keys[1:], (*done, key), new, name)}, tree.file, tree.line)


def _without_lines(tree: Tree, name: str) -> Tree:
    """An override's value: it has the override's name, and no line of a file."""
    value = tree.value
    if isinstance(value, dict):
        value = {key: _without_lines(child, name) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_without_lines(child, name) for child in value]
    return Tree(value, name, 0, tree.text)


def _validate(model: type[Model], document: Tree, prefix: str = "", problems: Sequence[str] = ()) -> Model:
    """The model over a document; strict, so that `true` is no number and `125` is no text.

    Args:
        prefix: Dotted path of the document in its file.
        problems: Lines about mistakes that were found before.

    Raises:
        RecipeError: One line for every problem, in the order of the file.
    """
    placed = []
    for path, message in mistakes(model, document):
        tree = deepest(document, path)
        dotted = ".".join(filter(None, (prefix, *(str(key) for key in path))))
        placed.append((tree.file, tree.line, f"{tree.where}: {f'{dotted}: ' if dotted else ''}{message}"))

    if problems or placed:
        raise RecipeError(listed([*problems, *(line for _, _, line in sorted(placed))]))
    return model.model_validate(document.plain(), strict=True)
