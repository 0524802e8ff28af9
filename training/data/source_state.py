"""Which files a source means, and a cheap digest of their state. Imports nothing heavy: the control plane uses it."""

from __future__ import annotations

import glob
import os
import re
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from training.errors import SourceError
from training.specs.base import digest_of
from training.specs.raw_corpus import Source

PROJECT_ROOT = Path(__file__).resolve().parents[2]
COMPRESSIONS = (".gz", ".zst")
PLAIN_FORMATS = (".txt", ".md", ".py")
FORMATS = (*PLAIN_FORMATS, ".jsonl", ".parquet")
_SUFFIXES = (".parquet", *(f"{format_}{compression}" for format_ in (*PLAIN_FORMATS, ".jsonl")
                           for compression in ("", *COMPRESSIONS)))
_READABLE = f"{', '.join(FORMATS)} (all but .parquet also with {' or '.join(COMPRESSIONS)})"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# Tests are not written to be read; _sysconfigdata and config-* are generated and differ between machines.
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_STDLIB_GENERATED = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: Where it is.
        name: Path relative to the source's folder, with `/`: what globs match and what provenance records.
        bytes: Size on disk.
        mtime_ns: Time of the last change.
    """

    path: Path
    name: str
    bytes: int
    mtime_ns: int


def source_state(sources: Iterable[Source], base: Path = PROJECT_ROOT) -> str:
    """SHA-256 (hex) of the state of all sources: names, sizes and times of change of files, commits of datasets.

    No file is opened. Equal states mean equal content unless somebody sets times of change back by hand.

    Raises:
        SourceError: A source has no file, or a dataset has no commit.
    """
    return digest_of([_state(source, base) for source in sources])


def _state(source: Source, base: Path) -> list[object]:
    if source.dataset is not None and local_dataset(source, base) is None:
        return [source.name, source.dataset, source.config, source.split, pinned_revision(source)]
    return [source.name, [[file.name, file.bytes, file.mtime_ns] for file in source_files(source, base)]]


def pinned_revision(source: Source) -> str:
    """The commit of a dataset on the hub.

    Raises:
        SourceError: It is missing, or is a name that can move, such as a branch.
    """
    if source.revision is None or not _COMMIT.fullmatch(source.revision):
        raise SourceError(f"source {source.name}: revision must be the commit of the dataset {source.dataset} (40 hex "
                          f"digits, found {source.revision!r}); its page on the hub lists them under Files, History")
    return source.revision


def local_dataset(source: Source, base: Path) -> Path | None:
    """The folder of a dataset that lies on this machine instead of on the hub."""
    if source.dataset is None:
        return None
    folder = expanded(source.dataset, base)
    return folder if folder.is_dir() else None


def source_files(source: Source, base: Path) -> list[SourceFile]:
    """The files of a source, sorted by name.

    Files and folders whose names start with a dot are left out, and so are files in formats that cannot be read.

    Args:
        source: A source with `path`, `stdlib`, or a `dataset` that is a local folder.
        base: Where relative paths start.

    Raises:
        SourceError: Nothing is there, nothing readable is there, or the globs leave nothing. A file that they leave is
            no regular file, is a link that leads out of the folder, or has a name that no record can hold.
    """
    try:
        root, paths, named = _candidates(source, base)
        folders = {} if named else {folder: os.path.realpath(folder)
                                    for folder in {root, *(path.parent for path in paths)}}
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "its folders are nested too deeply"
        raise SourceError(f"source {source.name}: {source.path or source.dataset} cannot be listed ({reason}); correct "
                          "its path in the recipe") from error
    files = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        if _wanted(name, source):
            problem, status = _look(path, folders.get(path.parent), folders.get(root))
            if status is None:
                raise SourceError(f"source {source.name}: {_shown(path)}: {problem}; repair it or exclude it")
            files.append(SourceFile(path, name, status.st_size, status.st_mtime_ns))
    if not files:
        raise SourceError(f"source {source.name}: {source.path or source.dataset or root} holds no file to read: found "
                          f"{len(paths)} in the formats {_READABLE}, and include/exclude left none of them")
    return sorted(files, key=lambda file: file.name)


def _look(path: Path, folder: str | None, root: str | None) -> tuple[str, os.stat_result | None]:
    """Why a file must not be read, or its status.

    Args:
        path: The file.
        folder: Real path of its folder; None where the file may lie anywhere.
        root: Real path of the source's folder.
    """
    if _shown(path) != str(path):
        return "its name is not UTF-8 or holds control characters", None
    try:
        link = stat.S_ISLNK(path.lstat().st_mode)
        status = path.stat()
    except OSError as error:
        return error.strerror or str(error), None
    if folder is not None and root is not None:
        real = os.path.realpath(path) if link else folder
        if os.path.commonpath((root, real)) != root:
            return "it is a link that leads out of the source's folder", None
    return ("", status) if stat.S_ISREG(status.st_mode) else ("it is a pipe, a socket or a device, not a file", None)


def _shown(path: Path) -> str:
    """A path for messages: what is not UTF-8 and what would move a terminal's cursor is escaped."""
    return _UNSHOWABLE.sub(lambda character: ascii(character[0])[1:-1], str(path))


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a relative path matches one of the globs; `*` also matches `/`, and a leading `**/` may match nothing."""
    return any(fnmatchcase(name, pattern) or (pattern.startswith("**/") and fnmatchcase(name, pattern[3:]))
               for pattern in globs)


def format_of(name: str) -> str:
    """The format of a file, such as `.jsonl` for `data.jsonl.gz`; empty if it is none of `FORMATS`."""
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return "." + suffix.split(".")[1] if suffix else ""


def expanded(path: str, base: Path) -> Path:
    """A path with `~` and environment variables expanded, absolute.

    Raises:
        SourceError: It names a variable that is not set.
    """
    whole = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$\{?(\w+)\}?", whole)
    if unset:
        raise SourceError(f"{path}: the environment variable {unset[1]} is not set")
    return base / whole


def _wanted(name: str, source: Source) -> bool:
    return (not source.include or matches(name, source.include)) and not matches(name, source.exclude)


def _candidates(source: Source, base: Path) -> tuple[Path, list[Path], bool]:
    """The folder that names are relative to, the readable files, and whether they may be links to anywhere."""
    if source.stdlib:
        root = Path(sysconfig.get_paths()["stdlib"])
        return root, [path for path in _walk(root) if path.suffix == ".py" and _in_stdlib(path.relative_to(root))], True
    pattern = source.path if source.path is not None else source.dataset
    assert pattern is not None
    path = expanded(pattern, base)
    if path.is_dir():
        return path, [file for file in _walk(path) if format_of(file.name)], False
    if path.exists():
        if not format_of(path.name):
            raise SourceError(f"source {source.name}: {path} has no format that can be read: {_READABLE}")
        return path.parent, [path], True
    if not glob.has_magic(str(path)):
        raise SourceError(f"source {source.name}: {path} does not exist; correct its path in the recipe")
    found = [Path(name) for name in glob.glob(str(path), recursive=True) if not os.path.isdir(name)]
    if not found:
        raise SourceError(f"source {source.name}: no file matches {path}; correct its path in the recipe")
    return _fixed_part(path), [file for file in found if format_of(file.name)], False


def _fixed_part(pattern: Path) -> Path:
    parts = pattern.parts
    return Path(*parts[:next(index for index, part in enumerate(parts) if glob.has_magic(part))])


def _in_stdlib(name: Path) -> bool:
    return not _STDLIB_SKIPPED & set(name.parts) and not any(part.startswith(_STDLIB_GENERATED) for part in name.parts)


def _walk(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename}: {error.strerror}; make it readable or leave it out") from error

    for folder, folders, names in os.walk(root, onerror=fail):
        # Skipping these early is what keeps a sensor's tick cheap beside a large site-packages.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in
                            ("__pycache__", "site-packages", "dist-packages"))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
