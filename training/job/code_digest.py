"""What a version's code consisted of: a digest of each function and class, so that a change can be named.

The fingerprint says that code differs. These digests say where. They never decide an identity. A name is the one inside
its module (`ShardWriter.add`): a module that moves or is renamed changes no digest. Nor do comments, docstrings,
formatting and imports of this project's own modules, but for those in an `else`, a `try` or a `with`.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

from training.job.fingerprint import project_modules

CODE_FILE = "report/code.json"
MODULE_BODY = "<module>"
_OWN_PACKAGES = ("training", "lmkernels")
Digests = dict[str, list[str]]


def code_digests(module: str) -> Digests:
    """Digests by qualified name, of a module and of every project module that it imports.

    Functions of one name in several modules have one entry, with a digest for each, in order.

    Raises:
        FingerprintError: A module does not exist.
    """
    digests: Digests = {}
    for source in project_modules(module).values():
        for name, digest in _digests_of(source):
            digests.setdefault(name, []).append(digest)
    return {name: sorted(several) for name, several in sorted(digests.items())}


def dump_digests(digests: Mapping[str, list[str]]) -> str:
    """The text of `report/code.json`."""
    return json.dumps(digests, indent=0, sort_keys=True)


def load_digests(data: bytes) -> Digests | None:
    """What `report/code.json` says; None when it is not such a file."""
    try:
        digests = json.loads(data)
        return {str(name): [str(digest) for digest in found] for name, found in digests.items()}
    except (ValueError, AttributeError, TypeError):
        return None


def changed_names(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> tuple[str, ...]:
    """The functions, classes and module bodies that are not the same, sorted; also those that came or went."""
    return tuple(
        name for name in sorted({*before, *after}) if Counter(before.get(name, ())) != Counter(after.get(name, ()))
    )


@cache
def _digests_of(source: bytes) -> tuple[tuple[str, str], ...]:
    """Names and digests of one module's parts. Stages share most of their modules, so each is parsed once a process."""
    parts = _parts(_plain(ast.parse(source)))
    return tuple((name, hashlib.sha256(text.encode()).hexdigest()[:16]) for name, text in parts)


def _parts(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and text of every function, of what else is in a class, and of what else is in the module."""
    yield from _split(tree.body, "")


def _split(body: list[ast.stmt], inside: str) -> Iterator[tuple[str, str]]:
    rest: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{inside}{node.name}", ast.unparse(node)
        elif isinstance(node, ast.ClassDef):
            # The class's own part: its bases and decorators, with its methods told apart from it.
            head = ast.ClassDef(node.name, node.bases, node.keywords, [ast.Pass()], node.decorator_list)
            rest.append(ast.fix_missing_locations(head))
            yield from _split(node.body, f"{inside}{node.name}.")
        else:
            rest.append(node)

    if texts := [ast.unparse(node) for node in rest if not isinstance(node, ast.Pass)]:
        yield inside.removesuffix(".") or MODULE_BODY, "\n".join(texts)


def _plain(tree: ast.Module) -> ast.Module:
    """The tree without docstrings, and without imports of this project's modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.If):
            node.body = [part for part in node.body if not _is_left_out(part)] or [ast.Pass()]
    return tree


def _is_left_out(node: ast.stmt) -> bool:
    """Whether a statement is a text that stands for itself, such as a docstring, or an import of this project."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.Import):
        return all(_is_own(alias.name) for alias in node.names)
    return isinstance(node, ast.ImportFrom) and _is_own(node.module or "")


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in _OWN_PACKAGES
