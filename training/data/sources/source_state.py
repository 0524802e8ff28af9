"""A cheap digest of the state of a recipe's sources. Imports nothing heavy: the control plane uses it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar, cast

from training.data.sources.hub_files import COMMIT, commit_of, needs_commit
from training.data.sources.local_listing import is_stdlib
from training.data.sources.source_files import (
    PROJECT_ROOT,
    SourceFile,
    is_function_alone,
    list_source,
    local_dataset,
    shown_reasons,
    unmatched_globs,
)
from training.specs.base import Spec, digest_of
from training.specs.conversations import ConversationsSection, PreferencesSection
from training.specs.origin import Origin
from training.specs.raw_corpus import RawCorpusSection

SectionT = TypeVar("SectionT", bound=Spec)
OriginT = TypeVar("OriginT", bound=Origin)


def source_state(sources: Iterable[Origin], base: Path = PROJECT_ROOT) -> str:
    """SHA-256 (hex) of the state of all sources: names, sizes, times and inodes of files, commits of datasets.

    No file is opened. The state changes with any write to a file, even one that sets its time of change back, and when
    another file is moved to its place. It also changes with a copy to another machine: the texts are gathered again
    there, and their content is the same. The standard library is installed and not written to, so its state is its
    names, sizes and times of change, the same wherever it was installed from the same package. A remote file's state is
    its size, ETag and time of change, as its server says them now. What a function reads that gets no files is not
    known here.

    Raises:
        SourceError: A source has no file, or a dataset has no commit.
    """
    return digest_of([_state(source, base) for source in sources])


def _state(source: Origin, base: Path) -> list[object]:
    if _is_on_hub(source, base):
        return [source.name, source.dataset, source.config, source.split, commit_of(source)]
    if is_function_alone(source):
        return [source.name]  # the digest of its code is part of the identity as a file
    listing = list_source(source, base)
    files = [_file_state(file, is_stdlib(source)) for file in listing.files]
    return [source.name, [*files, *(file.state for file in listing.remote)]]


def _file_state(file: SourceFile, installed: bool) -> list[object]:
    state = [file.name, file.bytes, file.status.st_mtime_ns]
    # Nobody can set a time of status change back, as `touch -r` does with the time of change.
    return state if installed else [*state, file.status.st_ctime_ns, file.status.st_ino]


def describe_source(source: Origin, base: Path = PROJECT_ROOT) -> str:
    """The files of a source that are read and left out, in one line: `notes: 497 files, 11.4 MB; left out: 3 .pdf`.

    Raises:
        SourceError: A source has no file, or a dataset has no commit.
    """
    if _is_on_hub(source, base):
        return f"{source.name}: the dataset {source.dataset} at {commit_of(source)[:12]}"
    if is_function_alone(source):
        return f"{source.name}: what a function yields; what it reads is not watched"
    listing = list_source(source, base)
    files = f"{len(listing.all_files):,} file{'' if len(listing.all_files) == 1 else 's'}"
    size = sum(file.bytes for file in listing.all_files)
    text = f"{source.name}: {files}, " + (f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB")
    text += f"; left out: {shown_reasons(listing.left_out)}" if listing.left_out else ""
    unmatched = unmatched_globs(source, listing)
    return f"{text}; no file matches {', '.join(unmatched)}" if unmatched else text


def pinned_revision(source: Origin) -> str:
    """The commit of a dataset on the hub, as it stands in the source.

    Raises:
        SourceError: It is missing, or is a name that can move, such as a branch.
    """
    if source.revision is None or not COMMIT.fullmatch(source.revision):
        raise needs_commit(source)
    return source.revision


def with_commits(section: SectionT) -> SectionT:
    """A section whose datasets of the hub have their commits in place of names that can move, such as `main`.

    Raises:
        SourceError: The hub does not give a commit.
    """
    if not isinstance(section, RawCorpusSection | ConversationsSection | PreferencesSection):
        return section
    return cast(SectionT, section.model_copy(update={"sources": tuple(map(with_commit, section.sources))}))


def with_commit(source: OriginT) -> OriginT:
    """A source that has its commit, where it is a dataset of the hub.

    Raises:
        SourceError: The hub does not give it.
    """
    return source.model_copy(update={"revision": commit_of(source)}) if _is_on_hub(source) else source


def _is_on_hub(source: Origin, base: Path = PROJECT_ROOT) -> bool:
    return source.dataset is not None and local_dataset(source, base) is None
