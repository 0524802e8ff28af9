"""Which files of this machine a source means, and how it may read them.

Imports nothing heavy: the control plane uses it.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from training.data.sources.file_names import HIDDEN, format_in, nfc, printable, readable
from training.errors import SourceError
from training.specs.addresses import is_address
from training.specs.origin import Origin
from training.specs.raw_corpus import Source

# Skipping these early is what keeps a sensor's tick cheap beside a large site-packages.
_SKIPPED_FOLDERS = ("__pycache__", "site-packages", "dist-packages")
# Tests are not written to be read; _sysconfigdata and config-* are generated and differ between machines.
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_STDLIB_GENERATED = ("_sysconfigdata", "config-")


def is_stdlib(source: Origin) -> bool:
    """Whether a source is the standard library of the running interpreter."""
    return isinstance(source, Source) and source.stdlib


def local_files(source: Origin, base: Path, left_out: Counter[str]) -> tuple[Path, list[Path], bool]:
    """The folder that names are relative to, the files in it, and whether they may be links to anywhere."""
    if is_stdlib(source):
        root = Path(sysconfig.get_paths()["stdlib"])
        uncounted = Counter[str]()  # only the modules are meant, so the other files are not counted as left out
        modules = [path for path in _walk(root, uncounted, follow=False) if _is_stdlib_module(path.relative_to(root))]
        return root, modules, True

    path = on_disk(expanded(str(source.path or source.dataset), base))
    if path.is_dir():
        return path, list(_walk(path, left_out, source.follow_links)), source.follow_links
    if path.exists():
        if not format_in(path.name, source):
            raise SourceError(f"source {source.name}: {path} has no format that can be read: {readable(source)}")
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


def status_of(source: Origin, path: Path, folder: str | None, root: str | None) -> os.stat_result:
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


def expanded(path: str, base: Path) -> Path:
    """A path with `~` and environment variables expanded, absolute.

    Raises:
        SourceError: It names a variable that is not set.
    """
    expanded_path = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$\{?(\w+)\}?", expanded_path)
    if unset:
        raise SourceError(f"{path}: the environment variable {unset[1]} is not set")
    if is_address(expanded_path):
        raise SourceError(
            f"{path} is an address; write its scheme and host into the recipe, such as https://host/$PATH"
        )
    return base / expanded_path


def on_disk(path: Path) -> Path:
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
    root, rest = on_disk(Path(*parts[:fixed])), str(Path(*parts[fixed:]))
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
