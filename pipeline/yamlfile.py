"""YAML that knows where it stands: every value keeps its file and line, so that errors can point at it.

Plain data only. A tag, a key given twice, an alias that grows without bounds and a document that is not UTF-8 are
errors. Numbers and words are read as in YAML 1.2: `2e-3` is a number, `on`, `no` and `12:30` are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.errors import RecipeError

_MAX_BYTES = 1_000_000
_MAX_VALUES = 20_000
_TOO_DEEP = "the values are nested too deeply"


@dataclass(frozen=True)
class Tree:
    """One YAML value with the place it was written at.

    Attributes:
        value: A dict of trees, a list of trees, or a plain scalar.
        file: Name of the file as it is shown to people, or `override` for a value of the command line.
        line: Line of the key that holds the value, counted from 1; 0 for an override.
    """

    value: Any
    file: str
    line: int

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
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(f"{name}:{line}: this is not UTF-8 text; save the file as UTF-8") from error
    if len(content) > _MAX_BYTES:
        raise RecipeError(f"{name}: {len(content):,} bytes are too many for a recipe (limit {_MAX_BYTES:,})")
    tree = parse_yaml(text, name)
    if not isinstance(tree.value, dict):
        raise RecipeError(f"{name}:{tree.line}: a mapping of keys to values is expected here, such as `name: mine`")
    return tree


def parse_yaml(text: str, name: str) -> Tree:
    """The document in `text`; `name` stands for the file in messages.

    Raises:
        RecipeError: As for `read_yaml`.
    """
    reader = _Reader(name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reader.problems += [f"{name}:{line}: the tag {tag} is refused: write plain values" for tag, line in loader.tags]
        tree = reader.tree(node, 1) if node is not None else Tree(None, name, 1)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax(error, name)) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise RecipeError(f"{name}: {_TOO_DEEP}") from error
    if reader.problems:
        raise RecipeError("\n".join(reader.problems))
    return tree


def dump_yaml(value: Any) -> str:
    """`value`, a JSON-like object, as YAML text that `parse_yaml` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


_RESOLVERS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789")),
    ("tag:yaml.org,2002:float",
     re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
                r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+.0123456789")),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Composes nodes; notes every explicit tag."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (the base's own attribute)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tags: list[tuple[str, int]] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  (PyYAML's stubs leave it untyped)
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.tags.append((tag.replace("tag:yaml.org,2002:", "!!"), event.start_mark.line + 1))
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (the base's own attribute)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)  # type: ignore[no-untyped-call]
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)  # type: ignore[no-untyped-call]


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
            raise RecipeError(f"{self.name}: the file grows to more than {_MAX_VALUES:,} values; do its aliases "
                              "multiply?")
        if isinstance(node, yaml.ScalarNode):
            return Tree(_scalar(node), self.name, line)
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
                self.problems.append(f"{self.name}:{line}: merge keys (<<) are not supported; use `extends` or repeat "
                                     "the values")
            elif text in seen:
                self.problems.append(f"{self.name}:{line}: {text} is given twice; it is on line {seen[text]} already")
            else:
                seen[text] = line
                yield text, self.tree(child, line)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    return text


def _syntax(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = f":{mark.line + 1}" if mark else ""
    problem = error.problem or "this is not YAML"
    if "chomping" in problem:
        problem = "put the comparison in quotes, such as \">=\""
    elif "'\\t'" in problem:
        problem = "a tab is used for indentation; use spaces"
    elif "expected a single document" in str(error):
        problem = "a second document starts here (`---`); a file holds one"
    return f"{name}{line}: {problem}"
