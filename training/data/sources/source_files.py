"""Which files a source means, and which of its files are left out, by reason.

Imports nothing heavy: the control plane uses it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import stat
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from training.data.sources.formats import CUSTOM, HTML, READABLE, TEXT, format_of, shown_suffix
from training.errors import SourceError
from training.specs.conversations import PLAIN_TEXT, ConversationSource
from training.specs.origin import Origin
from training.specs.raw_corpus import Source

PROJECT_ROOT = Path(__file__).resolve().parents[3]
EXCLUDED, EMPTY, HIDDEN = "excluded", "empty", "hidden"
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_SHOWN_REASONS = 12
_STATE = ("st_ino", "st_dev", "st_size", "st_mtime_ns", "st_ctime_ns")
# Skipping these early is what keeps a sensor's tick cheap beside a large site-packages.
_SKIPPED_FOLDERS = ("__pycache__", "site-packages", "dist-packages")
# Tests are not written to be read; _sysconfigdata and config-* are generated and differ between machines.
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_STDLIB_GENERATED = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: Where it is.
        name: Path relative to the source's folder, with `/` and in NFC: what globs match and what provenance records.
        status: Its size, times and inode.
    """

    path: Path
    name: str
    status: os.stat_result

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.status.st_size


@dataclass(frozen=True)
class SourceListing:
    """The files of a source.

    Attributes:
        files: Those that are read, sorted by name.
        left_out: Reason, such as `.pdf` or `hidden`, to the number of files that are not read. A folder counts as one.
        names: Names of all files, those left out by name or content included.
    """

    files: list[SourceFile]
    left_out: Counter[str]
    names: list[str]


def list_source(source: Origin, base: Path = PROJECT_ROOT) -> SourceListing:
    """The files of a source.

    Names and globs are compared in NFC, so that a name from macOS is the name that a person types.

    Args:
        source: A source with `path`, `stdlib`, or a `dataset` that is a local folder. Every file is read where a
            function reads them.
        base: Where relative paths start.

    Raises:
        SourceError: Nothing is there, or nothing is left to read. A file that is to be read is no regular file, is a
            link that leads out of the folder, or has a name that no record can hold.
    """
    left_out: Counter[str] = Counter()
    try:
        root, paths, follow = _candidates(source, base, left_out)
        folders = set() if follow else {root, *(path.parent for path in paths)}
        real_folders = {folder: os.path.realpath(folder) for folder in folders}
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "its folders are nested too deeply"
        raise SourceError(
            f"source {source.name}: {_place(source)} cannot be listed ({reason}); correct its path in the recipe"
        ) from error

    named = [(path, path.relative_to(root).as_posix()) for path in paths]
    files: dict[str, SourceFile] = {}
    # Two names may differ in their Unicode form alone. The one in NFC comes first; the other keeps the disk's form.
    for path, name_on_disk in sorted(named, key=lambda entry: (nfc(entry[1]) != entry[1], entry[1])):
        name = nfc(name_on_disk)
        reason = _reason_to_leave_out(name, source)
        if reason is None:
            status = _status(source, path, real_folders.get(path.parent), real_folders.get(root))
            reason = None if status.st_size else EMPTY
        if reason is not None:
            left_out[reason] += 1
            continue

        name = name_on_disk if name in files else name
        files[name] = SourceFile(path, name, status)

    if not files:
        files_left_out = f"left out: {shown_reasons(left_out)}" if left_out else "there is none"
        raise SourceError(
            f"source {source.name}: {_place(source) or root} holds no file to read ({files_left_out}); correct "
            f"its path in the recipe. What can be read is {READABLE}"
        )
    return SourceListing([files[name] for name in sorted(files)], left_out, [nfc(name) for _, name in named])


def unmatched_globs(source: Origin, listing: SourceListing) -> list[str]:
    """Globs of a source that match none of its files: most likely a slip of the pen."""
    domains = source.domains if isinstance(source, Source) else {}
    globs = [*source.include, *source.exclude, *(glob for globs in domains.values() for glob in globs)]
    return [pattern for pattern in dict.fromkeys(globs) if not any(matches(name, [pattern]) for name in listing.names)]


def shown_reasons(left_out: Counter[str]) -> str:
    """Counts by reason for people, the greatest first: `3 .pdf, 2 hidden, 1 linked folder`."""
    ordered = sorted(left_out.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [
        f"{count:,} {reason}{'s' if count > 1 and reason.endswith('folder') else ''}"
        for reason, count in ordered[:_SHOWN_REASONS]
    ]
    others = sum(count for _, count in ordered[_SHOWN_REASONS:])
    return ", ".join([*shown, f"{others:,} others"] if others else shown)


def local_dataset(source: Origin, base: Path = PROJECT_ROOT) -> Path | None:
    """The folder of a dataset that lies on this machine instead of on the hub."""
    if source.dataset is None:
        return None
    folder = _on_disk(expanded(source.dataset, base))
    return folder if folder.is_dir() else None


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a relative path matches one of the globs; `*` also matches `/`, and a leading `**/` may match nothing."""
    name = nfc(name)
    return any(
        fnmatchcase(name, pattern) or (pattern.startswith("**/") and fnmatchcase(name, pattern[3:]))
        for pattern in map(nfc, globs)
    )


def nfc(text: str) -> str:
    """A text in the Unicode form NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def expanded(path: str, base: Path) -> Path:
    """A path with `~` and environment variables expanded, absolute.

    Raises:
        SourceError: It names a variable that is not set.
    """
    expanded_path = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$\{?(\w+)\}?", expanded_path)
    if unset:
        raise SourceError(f"{path}: the environment variable {unset[1]} is not set")
    return base / expanded_path


def _place(source: Origin) -> str:
    return source.path or source.dataset or ""


def _reason_to_leave_out(name: str, source: Origin) -> str | None:
    if (source.include and not matches(name, source.include)) or matches(name, source.exclude):
        return EXCLUDED
    return None if format_in(name, source) else shown_suffix(name)


def format_in(name: str, source: Origin) -> str | None:
    """The format by which a source reads a file; None if it does not read it.

    A file of plain text is a text of a corpus. Beside rows it is mostly a note about them, so that a source of
    conversations reads it where it says so, and no page of HTML.
    """
    if isinstance(source, Source):
        if source.function is not None:
            return CUSTOM
        return format_of(name, source.text_suffixes)
    format_ = format_of(name)
    reads_text = isinstance(source, ConversationSource) and source.format == PLAIN_TEXT
    return format_ if format_ not in (TEXT, HTML) or (reads_text and format_ == TEXT) else None


def is_stdlib(source: Origin) -> bool:
    """Whether a source is the standard library of the running interpreter."""
    return isinstance(source, Source) and source.stdlib


def is_function_alone(source: Origin) -> bool:
    """Whether a source is a function of the recipe's own code that gets no files."""
    return isinstance(source, Source) and source.function is not None and source.path is None


def _status(source: Origin, path: Path, folder: str | None, root: str | None) -> os.stat_result:
    """The status of a file that may be read.

    Args:
        source: Named in messages.
        path: The file.
        folder: Real path of its folder; None where the file may lie anywhere.
        root: Real path of the source's folder; None as for `folder`.

    Raises:
        SourceError: The file may not be read.
    """

    def refuse(problem: str, remedy: str = "repair it or exclude it") -> SourceError:
        return SourceError(f"source {source.name}: {printable(str(path))}: {problem}; {remedy}")

    if printable(str(path)) != str(path):
        raise refuse("its name is not UTF-8 or holds control characters")
    try:
        link = stat.S_ISLNK(path.lstat().st_mode)
        status = path.stat()
    except OSError as error:
        raise refuse(error.strerror or str(error)) from error

    if folder is not None and root is not None:
        real = os.path.realpath(path) if link else folder
        if os.path.commonpath((root, real)) != root:
            raise refuse(
                "it is a link that leads out of the source's folder",
                "set follow_links: true of the source to read what it leads to, or exclude it",
            )
    if not stat.S_ISREG(status.st_mode):
        raise refuse("it is a pipe, a socket or a device, not a file")
    return status


def printable(text: str) -> str:
    """A text for messages: what is not UTF-8 and what would move a terminal's cursor is escaped."""
    return _UNSHOWABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def state_of(files: Iterable[SourceFile]) -> str:
    """Digest of the names and states of some files: another one if a file was written to or replaced."""
    states = [[file.name, *(getattr(file.status, field) for field in _STATE)] for file in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def require_unchanged(file: SourceFile) -> None:
    """Refuse a file that changed since it was listed: what was read of it may be half of the old and half of the new.

    Raises:
        SourceError: It was written to, replaced or removed.
    """
    try:
        status = file.path.stat()
    except OSError as error:
        raise SourceError(f"{printable(str(file.path))}: {error.strerror} while it was read; start again") from error
    if any(getattr(status, field) != getattr(file.status, field) for field in _STATE):
        raise SourceError(
            f"{printable(str(file.path))}: it changed while it was read; start again when nobody writes to it"
        )


def _candidates(source: Origin, base: Path, left_out: Counter[str]) -> tuple[Path, list[Path], bool]:
    """The folder that names are relative to, the files in it, and whether they may be links to anywhere."""
    if is_stdlib(source):
        root = Path(sysconfig.get_paths()["stdlib"])
        uncounted = Counter[str]()  # only the modules are meant, so the other files are not counted as left out
        modules = [path for path in _walk(root, uncounted, follow=False) if _is_stdlib_module(path.relative_to(root))]
        return root, modules, True

    path = _on_disk(expanded(_place(source), base))
    if path.is_dir():
        return path, list(_walk(path, left_out, source.follow_links)), source.follow_links
    if path.exists():
        if not format_in(path.name, source):
            raise SourceError(f"source {source.name}: {path} has no format that can be read: {READABLE}")
        return path.parent, [path], True

    if not glob.has_magic(str(path)):
        raise SourceError(f"source {source.name}: {path} does not exist; correct its path in the recipe")
    root, matching = _matching(path)
    files = [file for file in matching if not file.is_dir()]
    # `**` matches every folder on the way to a file, and nobody asked for those.
    if "**" not in path.parts and len(files) < len(matching):
        left_out["folder"] = len(matching) - len(files)
    if not files:
        raise SourceError(f"source {source.name}: no file matches {path}; correct its path in the recipe")
    return root, files, source.follow_links


def _on_disk(path: Path) -> Path:
    """A path as the disk spells it: its names may have another Unicode form than the one that a person types."""
    if str(path).isascii() or path.exists():
        return path

    spelled = Path(path.anchor)
    for part in path.parts[1:]:
        if not (spelled / part).exists() and spelled.is_dir():
            part = next((name for name in sorted(os.listdir(spelled)) if nfc(name) == nfc(part)), part)
        spelled /= part
    return spelled


def _matching(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder at which the magic of a glob begins, and everything below it that matches."""
    parts = pattern.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root, rest = _on_disk(Path(*parts[:fixed])), str(Path(*parts[fixed:]))
    # A disk may hold names in either form: macOS writes NFD, most systems write a name as it was typed.
    matching = {
        path
        for form in ("NFC", "NFD")
        for path in glob.glob(str(root / unicodedata.normalize(form, rest)), recursive=True)
    }
    return root, [Path(path) for path in matching]


def _is_stdlib_module(path: Path) -> bool:
    """Whether a path relative to the standard library's folder is a module that is read."""
    return (
        path.suffix == ".py"
        and not _STDLIB_SKIPPED & set(path.parts)
        and not any(part.startswith(_STDLIB_GENERATED) for part in path.parts)
    )


def _walk(root: Path, left_out: Counter[str], follow: bool) -> Iterator[Path]:
    """The files below a folder. Hidden files, and folders that are not entered, are counted as left out."""

    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename}: {error.strerror}; make it readable or leave it out") from error

    real_root, followed = os.path.realpath(root), set[tuple[int, int]]()
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=follow):
        if follow:
            followed.add(_inode(folder))

        walked = []
        for name in sorted(folders):
            path = os.path.join(folder, name)
            reason: str | None = None
            if name.startswith("."):
                reason = f"{HIDDEN} folder"
            elif name in _SKIPPED_FOLDERS:
                reason = f"{name} folder"
            elif os.path.islink(path):
                reason = _link_left_out(path, real_root, followed, follow)

            if reason is None:
                walked.append(name)
            elif reason:
                left_out[reason] += 1
        folders[:] = walked  # os.walk enters the folders that are left in its list

        left_out.update([HIDDEN] * sum(name.startswith(".") for name in names))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _link_left_out(path: str, root: str, followed: set[tuple[int, int]], follow: bool) -> str | None:
    """Why a linked folder is left out: empty where its files are read all the same, None where it is followed."""
    if not follow:
        real = os.path.realpath(path)
        return "" if os.path.commonpath((root, real)) == root else "linked folder"
    if _inode(path) in followed:  # a loop, or a second link to one folder
        return ""
    followed.add(_inode(path))
    return None


def _inode(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
