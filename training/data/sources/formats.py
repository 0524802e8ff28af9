"""Which files can be read, by their suffixes. Imports nothing heavy: the control plane uses it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from training.specs.raw_corpus import COMPRESSIONS

TEXT, HTML, JSON_LINES, JSON, CSV, PARQUET, ARROW = "text", "HTML", "JSON lines", "JSON", "CSV", "Parquet", "Arrow"
NPY = "NumPy"
CUSTOM = "custom"  # what a function of the recipe's own code reads
FORMATS = {
    ".txt": TEXT, ".text": TEXT, ".md": TEXT, ".markdown": TEXT, ".rst": TEXT, ".py": TEXT,
    ".html": HTML, ".htm": HTML,
    ".jsonl": JSON_LINES, ".jsonlines": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON,
    ".csv": CSV, ".tsv": CSV, ".parquet": PARQUET, ".arrow": ARROW, ".feather": ARROW,
}  # fmt: skip
ID_FORMATS = {".npy": NPY, ".parquet": PARQUET, ".arrow": ARROW, ".feather": ARROW}  # of sources of token ids
READABLE = (
    f"{', '.join(FORMATS)} (all but .parquet, .arrow and .feather also with {', '.join(COMPRESSIONS[:-1])} or "
    f"{COMPRESSIONS[-1]}; text_suffixes adds others)"
)

_SUFFIX = re.compile(r"\.[\w+-]{1,16}")  # " Smith" of the name "Mr. Smith" is no suffix


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, without that of its compression: `.jsonl` for `Data.JSONL.gz`."""
    suffix = PurePosixPath(uncompressed(name.lower())).suffix
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def compression_of(name: str) -> str:
    """The member of `COMPRESSIONS` that a file's name ends with, in any case; empty if there is none."""
    return next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")


def uncompressed(name: str) -> str:
    """A file's name without the suffix of its compression."""
    return name.removesuffix(name[len(name) - len(compression_of(name)) :])


def format_of(name: str, text_suffixes: Iterable[str] = ()) -> str | None:
    """The format by which a file is read, a member of `FORMATS`; None if it is not read.

    Args:
        name: The file's name. Its suffix counts in any case.
        text_suffixes: Further suffixes of files that are one text each, in lower case.
    """
    suffix = suffix_of(name)
    if suffix in text_suffixes:
        return TEXT

    format_ = FORMATS.get(suffix)
    # Both compress their own data and are read from their end, which a compressed stream cannot be.
    return None if format_ in (PARQUET, ARROW) and compression_of(name) else format_


def id_format_of(name: str) -> str | None:
    """The format by which token ids are read from a file, a member of `ID_FORMATS`; None if they are not."""
    return None if compression_of(name) else ID_FORMATS.get(suffix_of(name))


def shown_suffix(name: str) -> str:
    """The suffix that says why a file is not read, such as `.tar.gz`."""
    return f"{suffix_of(name)}{compression_of(name)}" or "without a suffix"
