"""Where a document is from, written into its `path`: `<file>`, `<file>#<row>`, and `...#part<n>` for cut documents."""

from __future__ import annotations

import re

from training.data.sources.formats import suffix_of, uncompressed

PART = re.compile(r"#part\d+$")
_ROW = re.compile(r"#\d+$")


def part_path(path: str, part: int) -> str:
    """Path of the n-th piece of a document, counted from 1."""
    return f"{path}#part{part}"


def group_of(path: str) -> str:
    """Path of the whole document that a piece was cut from; a path of a whole document is returned as it is.

    All pieces of a document lie on one side of the split, and are put together again before they are packed.
    """
    return PART.sub("", path)


def part_of(path: str) -> int:
    """Number of a piece in its document, counted from 1; 0 for a document that was not cut."""
    match = PART.search(path)
    return int(match[0].removeprefix("#part")) if match else 0


def file_of(path: str) -> str:
    """The file that a document lies in, relative to its source."""
    return _ROW.sub("", group_of(path))


def is_python(path: str) -> bool:
    """Whether a document is the source of a Python module."""
    return suffix_of(group_of(path)) == ".py"


def module_of(path: str) -> str:
    """Dotted name of the module in a Python file, such as `asyncio.queues`; empty for `__init__.py` at the top."""
    name = uncompressed(file_of(path))[: -len(".py")]
    parts = [part for part in name.split("/") if part]
    return ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)
