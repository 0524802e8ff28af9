"""Which files a source means, and which of its files are left out, by reason.

Imports nothing heavy: the control plane uses it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.data.sources.file_names import EMPTY, HIDDEN, matches, nfc, printable, readable, reason_to_leave_out
from training.data.sources.local_listing import expanded, local_files, on_disk, status_of
from training.data.sources.remote_files import RemoteFile
from training.data.sources.remote_listing import remote_files
from training.errors import SourceError
from training.specs.addresses import shown_address
from training.specs.origin import Origin
from training.specs.raw_corpus import Source

PROJECT_ROOT = Path(__file__).resolve().parents[3]
_SHOWN_REASONS = 12


@dataclass(frozen=True)
class LineRange:
    """Lines of a file, or documents of a stream of token ids, that are read apart from the others.

    Attributes:
        start: Its first byte, at which a line begins.
        end: The byte behind its last line.
        before: How many lines of the file are before it.
    """

    start: int
    end: int
    before: int


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: Where it is.
        name: Path relative to the source's folder, with `/` and in NFC: what globs match and what provenance records.
        status: Its size, times and inode.
        remote: What it was fetched from; None for a file that lies where the recipe says.
        lines: The part of it that is meant; None for the whole file.
    """

    path: Path
    name: str
    status: os.stat_result
    remote: RemoteFile | None = None
    lines: LineRange | None = None

    @property
    def shown(self) -> str:
        """What messages call it: its path, or the address that it was fetched from."""
        return self.remote.shown if self.remote else str(self.path)

    @property
    def bytes(self) -> int:
        """Size on disk, of the part that is meant."""
        return self.lines.end - self.lines.start if self.lines else self.status.st_size


@dataclass(frozen=True)
class SourceListing:
    """The files of a source.

    Attributes:
        files: Those that are read, sorted by name.
        remote: In place of `files`, those of a source that is not on this machine.
        left_out: Reason, such as `.pdf` or `hidden`, to the number of files that are not read. A folder counts as one.
        names: Names of all files, those left out by name or content included.
    """

    files: list[SourceFile]
    left_out: Counter[str]
    names: list[str]
    remote: list[RemoteFile] = field(default_factory=list)

    @property
    def all_files(self) -> Sequence[SourceFile | RemoteFile]:
        """The files that are read, wherever they lie."""
        return self.remote or self.files


def list_source(source: Origin, base: Path = PROJECT_ROOT) -> SourceListing:
    """The files of a source.

    Names and globs are compared in NFC, so that a name from macOS is the name that a person types.

    Args:
        source: A source with `path`, `stdlib`, or a `dataset` that is a local folder. Every file is read where a
            function reads them.
        base: Where relative paths start.

    Raises:
        SourceError: Nothing is there, or nothing is left to read. A file that is to be read is no regular file, is a
            link that leads out of the folder, or has a name that no record can hold. A server cannot be reached, or
            refuses access.
    """
    left_out: Counter[str] = Counter()
    if source.addresses:
        return _remote_listing(source, left_out)
    try:
        root, paths, follow = local_files(source, base, left_out)
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
        reason = reason_to_leave_out(name, source)
        if reason is None:
            status = status_of(source, path, real_folders.get(path.parent), real_folders.get(root))
            reason = None if status.st_size else EMPTY
        if reason is not None:
            left_out[reason] += 1
            continue

        name = name_on_disk if name in files else name
        files[name] = SourceFile(path, name, status)

    if not files:
        raise _nothing_to_read(source, _place(source) or str(root), left_out)
    return SourceListing([files[name] for name in sorted(files)], left_out, [nfc(name) for _, name in named])


def _remote_listing(source: Origin, left_out: Counter[str]) -> SourceListing:
    files: dict[str, RemoteFile] = {}
    names = []
    for file in remote_files(source):
        name = nfc(file.name)
        if printable(name) != name:
            raise SourceError(
                f"source {source.name}: {printable(file.shown)}: its name is not UTF-8 or holds control characters; "
                "rename or exclude it"
            )
        names.append(name)
        if name in files:
            raise SourceError(
                f"source {source.name}: {file.shown} has the name {name} of another file; make them two sources"
            )
        hidden = HIDDEN if any(part.startswith(".") for part in name.split("/")) else None
        reason = hidden or reason_to_leave_out(name, source) or (None if file.bytes else EMPTY)
        if reason is not None:
            left_out[reason] += 1
            continue
        files[name] = replace(file, name=name)

    if not files:
        raise _nothing_to_read(source, _place(source), left_out)
    return SourceListing([], left_out, names, [files[name] for name in sorted(files)])


def _nothing_to_read(source: Origin, place: str, left_out: Counter[str]) -> SourceError:
    files_left_out = f"left out: {shown_reasons(left_out)}" if left_out else "there is none"
    return SourceError(
        f"source {source.name}: {place} holds no file to read ({files_left_out}); correct "
        f"its path in the recipe. What can be read is {readable(source)}"
    )


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
    folder = on_disk(expanded(source.dataset, base))
    return folder if folder.is_dir() else None


def _place(source: Origin) -> str:
    """Where a source lies, for messages, and as a path where it has one."""
    if source.addresses:
        return ", ".join(shown_address(address) for address in source.addresses[:3])
    return str(source.path or source.dataset or "")


def is_function_alone(source: Origin) -> bool:
    """Whether a source is a function of the recipe's own code that gets no files."""
    return isinstance(source, Source) and source.function is not None and source.path is None
