"""YAML with positions: every value keeps its file and line, so that errors can point at it.

Plain data only. A tag, a key given twice, an alias that grows without bounds and a document that is not UTF-8 are
errors. Numbers and words are read as in YAML 1.2: `2e-3` is a number; `on`, `no` and `12:30` are text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from training.errors import RecipeError

_MAX_BYTES = 1_000_000
_MAX_VALUES = 20_000
_MAX_DEPTH = 50  # a recipe has 7; what reads YAML and what checks the values recurses
_MAX_PROBLEMS = 50  # nobody reads more at once, and a bad file can have one in every line
_LONGEST_PROBLEM = 500
_FAST_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # libyaml's, which is in PyYAML's wheels
# Where the two readers differ, PyYAML's own refuses what the other takes: a tab in a text, a comment without a blank.
_READ_OTHERWISE = re.compile(r"\t|[>|][-+0-9]*#")
_CORE = "tag:yaml.org,2002:"
KeyPath = tuple[str | int, ...]
_STR, _MAP, _SEQ = _CORE + "str", _CORE + "map", _CORE + "seq"


@dataclass(frozen=True)
class Tree:
    """One YAML value with the place where it was written.

    Attributes:
        value: A dict of trees, a list of trees, or a plain scalar.
        file: Name of the file as people see it, or `override ...` for a value of the command line.
        line: Line of the key that holds the value, counted from 1; 0 for an override.
        text: A scalar as it was written; empty for a list or a mapping.
    """

    value: Any
    file: str
    line: int
    text: str = ""

    @property
    def where(self) -> str:
        """`file:line`, as editors and terminals understand it."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def child(self, key: str | int) -> Tree | None:
        """The tree under a key or an index, or None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            child = self.value[key]
            assert isinstance(child, Tree)
            return child
        return None

    def plain(self) -> Any:
        """The value alone. Lists become tuples, which is what frozen specs hold."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return tuple(child.plain() for child in self.value)
        return self.value


def merge(base: Tree, top: Tree) -> Tree:
    """`top` over `base`: mappings are merged key by key, everything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top

    merged = dict(base.value)
    for key, child in top.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Tree(merged, top.file, top.line)


def lookup(document: Tree, path: KeyPath) -> Tree | None:
    """The tree at `path`, None where nothing was written."""
    tree: Tree | None = document
    for key in path:
        tree = tree.child(key) if tree else None
    return tree


def deepest(document: Tree, path: KeyPath) -> Tree:
    """The tree at `path`, or the nearest one above it that was written."""
    for key in path:
        child = document.child(key)
        if child is None:
            break
        document = child
    return document


def without(tree: Tree, path: KeyPath) -> Tree:
    """`tree` without the value under a path that exists."""
    key, rest = path[0], path[1:]
    value = tree.value
    if isinstance(value, list):
        assert isinstance(key, int)
        items = [without(child, rest) if index == key else child for index, child in enumerate(value)]
        return replace(tree, value=items)
    if not rest:
        return replace(tree, value={name: child for name, child in value.items() if name != key})
    return replace(tree, value=value | {str(key): without(value[str(key)], rest)})


def shown(path: Path) -> str:
    """`path` as messages name it: relative to the working directory where it lies inside."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_yaml(path: Path) -> Tree:
    """The document of a file; its top level is a mapping.

    Raises:
        RecipeError: The file cannot be read or is not plain YAML; every problem found is a line of the message.
    """
    name = shown(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{name}: more than {_MAX_BYTES:,} bytes are too many for a recipe")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(f"{name}:{line}: this is not UTF-8 text; save the file as UTF-8") from error

    tree = parse_yaml(text, name)
    if not isinstance(tree.value, dict):
        raise RecipeError(f"{name}:{tree.line}: a mapping of keys to values is expected here, such as `name: mine`")
    return tree


def parse_yaml(text: str, name: str) -> Tree:
    """The document in `text`; `name` stands for the file in messages.

    Raises:
        RecipeError: As for `read_yaml`.
    """
    try:
        try:
            tags, node = _composed(text, name, yaml.BaseLoader if _READ_OTHERWISE.search(text) else _FAST_LOADER)
        except yaml.YAMLError:  # again, because the two say the same mistake in different words and places
            tags, node = _composed(text, name, yaml.BaseLoader)
        reader = _Reader(name)
        reader.problems += [
            f"{name}:{event.start_mark.line + 1}: the tag {_short(event.tag)} is refused: write plain values"
            for event in tags
        ]
        tree = Tree(None, name, 1) if node is None else reader.tree(node, node.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax(error, name)) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise RecipeError(f"{name}:{line}: {str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: {str(error).splitlines()[0]}") from error

    if reader.problems:
        raise RecipeError(listed(reader.problems))
    return tree


def listed(problems: Sequence[str]) -> str:
    """Problems, one a line, as many as a person can read."""
    lines = [line if len(line) <= _LONGEST_PROBLEM else f"{line[:_LONGEST_PROBLEM]}..." for line in problems]
    more = [f"... and {len(lines) - _MAX_PROBLEMS:,} more"] if len(lines) > _MAX_PROBLEMS else []
    return "\n".join(lines[:_MAX_PROBLEMS] + more)


def _composed(text: str, name: str, loader: Any) -> tuple[list[yaml.Event], yaml.Node | None]:
    """The events that have tags, and the document.

    Args:
        loader: One that builds no objects: every scalar is text, and `_scalar` below gives it a meaning.
    """
    # The events come first: they are limited, while composing a deep or a huge document is not.
    tags = [event for event in _events(text, name, loader) if getattr(event, "tag", None)]
    return tags, yaml.compose(text, loader)


def _events(text: str, name: str, loader: Any) -> Iterator[yaml.Event]:
    """The parser's events, whose number and depth are limited.

    Raises:
        RecipeError: The document is deeper or longer than any recipe.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise RecipeError(
                f"{name}:{event.start_mark.line + 1}: the values are nested too deeply (limit {_MAX_DEPTH})"
            )

        if count > 3 * _MAX_VALUES:  # a value in a mapping is two events, an end is one more
            raise RecipeError(f"{name}:{event.start_mark.line + 1}: the file has more than {_MAX_VALUES:,} values")
        yield event


def dump_yaml(value: Any) -> str:
    """`value`, a JSON-like object, as YAML text that `parse_yaml` reads back to the same value."""
    text = yaml.serialize(_node(value), Dumper=yaml.BaseDumper, allow_unicode=True, width=110)
    assert isinstance(text, str)
    return text


_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_MAX_DIGITS = 30  # Python refuses to read integers of thousands of digits, and no recipe needs one
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False,
          ".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}  # fmt: skip


def _scalar(text: str) -> Any:
    """The value of an unquoted scalar in the core schema of YAML 1.2."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _node(value: Any) -> Any:
    if isinstance(value, dict):
        pairs = [(_node(key), _node(child)) for key, child in value.items()]
        return yaml.MappingNode(_MAP, pairs, flow_style=not pairs)
    if isinstance(value, list | tuple):
        nodes = [_node(child) for child in value]
        return yaml.SequenceNode(_SEQ, nodes, flow_style=all(isinstance(node, yaml.ScalarNode) for node in nodes))
    if isinstance(value, str):
        return yaml.ScalarNode(_STR, value, style=None if _scalar(value) == value else '"')
    return yaml.ScalarNode(_STR, "null" if value is None else str(value).lower())


def _short(tag: str) -> str:
    return tag.replace(_CORE, "!!")


class _Reader:
    """Turns composed nodes into trees and collects what is wrong with them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []
        self._open: set[int] = set()
        self._count = 0

    def tree(self, node: yaml.Node, line: int) -> Tree:
        self._count += 1
        if self._count > _MAX_VALUES:
            raise RecipeError(
                f"{self.name}:{line}: the file grows to more than {_MAX_VALUES:,} values; do its aliases multiply?"
            )
        # A quoted scalar and a block scalar have a style: what they hold is text.
        if isinstance(node, yaml.ScalarNode):
            return Tree(node.value if node.style else _scalar(node.value), self.name, line, node.value)

        if id(node) in self._open:
            raise RecipeError(f"{self.name}:{node.start_mark.line + 1}: this anchor contains itself")
        self._open.add(id(node))
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = dict(self._pairs(node))
        else:
            value = [self.tree(child, child.start_mark.line + 1) for child in node.value]
        self._open.remove(id(node))
        return Tree(value, self.name, line)

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, Tree]]:
        seen: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(f"{self.name}:{line}: a key must be a word, not a list or a mapping")
                continue

            text = key.value
            if text == "<<":
                self.problems.append(
                    f"{self.name}:{line}: merge keys (<<) are not supported; use `extends` or repeat the values"
                )
            elif text in seen:
                self.problems.append(f"{self.name}:{line}: {text} is given twice; it is on line {seen[text]} already")
            else:
                seen[text] = line
                yield text, self.tree(child, line)


def _syntax(error: yaml.MarkedYAMLError, name: str) -> str:
    """The parser's message, with the remedy for the mistakes that people make most."""
    mark = error.problem_mark or error.context_mark
    line = f":{mark.line + 1}" if mark else ""
    problem = error.problem or "this is not YAML"
    if "chomping" in problem:
        problem = 'put the comparison in quotes, such as ">="'
    elif "'\\t'" in problem:
        problem = "a tab is used for indentation; use spaces"
    elif "expected a single document" in str(error):
        problem = "a second document starts here (`---`); a file holds one"
    return f"{name}{line}: {problem}"
