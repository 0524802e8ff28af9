"""What stands in a recipe's own code, read and never run: it is imported in the processes of jobs alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.humanize import nearest
from pipeline.recipes.document import KeyPath, shown
from training.custom import FILTER, SOURCE

_DECORATORS = (FILTER, SOURCE)


def function_problems(path: Path, functions: Mapping[KeyPath, tuple[str, str]]) -> Iterator[tuple[KeyPath, str]]:
    """Keys of a recipe and what is wrong with the functions that they name.

    Args:
        path: The file.
        functions: Key to the decorator that a function needs, and its name.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        yield ("code",), f"{shown(path)}:{line}: is not Python ({getattr(error, 'msg', error)}); correct it"
        return
    except OSError as error:
        yield ("code",), f"{shown(path)}: {error.strerror}; make it readable"
        return

    decorated = dict(_decorated(tree))
    for key, (decorator, name) in functions.items():
        if decorated.get(name) == decorator:
            continue
        names = [other for other, its_decorator in decorated.items() if its_decorator == decorator]
        there_are = f"; those there are {', '.join(names)}" if names else ""
        yield key, f"{shown(path)} has no function {name} with @{decorator}{nearest(name, names) or there_are}"


def _decorated(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Functions of a module's own level, each with its decorator of `training.custom`."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
                if name in _DECORATORS:
                    yield node.name, name
