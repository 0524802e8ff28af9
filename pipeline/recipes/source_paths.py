"""Where the relative paths of a recipe's sources, of its code and of the model and tokenizer that it imports, start."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from pipeline.recipes.document import Tree

_WITH_ORIGIN, _ORIGIN, _CODE = ("base_model", "tokenizer"), "from", "code"
_LISTS = ("sources", "conversations", "preferences")


def anchored(document: Tree, folder: Path) -> Tree:
    """The document with the relative paths of its sources, of its code and of its origins made absolute.

    A source is inherited with the folder of the recipe that wrote it: `path: notes` means the same in every recipe that
    extends it. So are its code, and the origin of a model or a tokenizer.

    Args:
        document: A recipe file's values.
        folder: Where its relative paths start.
    """
    for section in _WITH_ORIGIN:
        document = _anchored_origin(document, section, folder)

    code = document.child(_CODE)
    if code is not None and isinstance(code.value, str) and (path := _absolute(_CODE, code.value, folder)):
        document = Tree(document.value | {_CODE: Tree(path, code.file, code.line)}, document.file, document.line)

    for name in _LISTS:
        sources = document.child(name)
        if sources is not None and isinstance(sources.value, list):
            items = [_anchored(source, folder) for source in sources.value]
            lists = {name: Tree(items, sources.file, sources.line)}
            document = Tree(document.value | lists, document.file, document.line)
    return document


def _anchored_origin(document: Tree, section: str, folder: Path) -> Tree:
    tree = document.child(section)
    origin = tree.child(_ORIGIN) if tree is not None and isinstance(tree.value, dict) else None
    if tree is None or origin is None or not isinstance(origin.value, str):
        return document

    # With a revision it is a name on the hub.
    path = None if tree.child("revision") else _absolute("path", origin.value, folder)
    if path is None:
        return document
    value = tree.value | {_ORIGIN: Tree(path, origin.file, origin.line)}
    return Tree(document.value | {section: Tree(value, tree.file, tree.line)}, document.file, document.line)


def _anchored(source: Tree, folder: Path) -> Tree:
    written = {key: source.child(key) for key in ("path", "dataset")}
    values: dict[str, Any] = {
        key: Tree(value, tree.file, tree.line)
        for key, tree in written.items()
        if tree is not None and isinstance(tree.value, str) and (value := _absolute(key, tree.value, folder))
    }
    return Tree(source.value | values, source.file, source.line) if values else source


def _absolute(key: str, path: str, folder: Path) -> str | None:
    """The path from the root; None where it is absolute already, or is the name of a dataset on the hub."""
    if not path or os.path.isabs(os.path.expanduser(os.path.expandvars(path))):
        return None
    if key == "dataset":
        return str(folder / path) if (folder / os.path.expandvars(path)).is_dir() else None

    # A path with wildcards is matched later: those in the folder's own name must stand for themselves.
    has_wildcards = key == "path" and glob.has_magic(path)
    return os.path.join(glob.escape(str(folder)) if has_wildcards else str(folder), path)
