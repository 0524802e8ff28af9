"""The files of a dataset: those that its split names, in a local folder or on the hub. Code in datasets is never run.

The library `datasets` says only which files they are. It would read JSON through Arrow, and a dataset from its start to
its end in one process.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from training.data.sources.bad_rows import LONGEST_MESSAGE
from training.data.sources.file_names import EMPTY, EXCLUDED, HIDDEN, format_in, matches, nfc, reason_to_leave_out
from training.data.sources.hub_files import from_hub, hub_files
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_files import PROJECT_ROOT, SourceFile, is_function_alone, list_source, local_dataset
from training.data.sources.source_state import pinned_revision
from training.errors import SourceError
from training.specs.origin import Origin

_FORMATS = ("parquet", "json", "csv", "text", "arrow")  # the others decode archives, images and the like
_NO_OPTIONS = ("name", "version", "description", "data_dir", "data_files", "features")
_CARDS = ("README.md", ".huggingface.yaml")  # they may say which file belongs to which split


def files_of(source: Origin, left_out: Counter[str], base: Path = PROJECT_ROOT) -> Sequence[SourceFile | RemoteFile]:
    """The files that are read of a source, in the order of their names; none where a function gets none.

    Args:
        source: What to read.
        left_out: Files that are not read are counted here, by reason.
        base: The folder that relative paths start from.

    Raises:
        SourceError: Nothing is there to read, or it cannot be listed.
    """
    if is_function_alone(source):
        return ()
    if source.dataset is None:
        listing = list_source(source, base)
        left_out.update(listing.left_out)
        return listing.all_files
    folder = local_dataset(source, base)
    files = _on_hub(source, left_out) if folder is None else _in_folder(source, folder, left_out, base)
    if not files:
        raise SourceError(f"source {source.name}: the split {source.split} of {source.dataset} holds no file to read")
    return files


def _in_folder(source: Origin, folder: Path, left_out: Counter[str], base: Path) -> list[SourceFile]:
    listing = list_source(source, base)
    listed = {file.name: file for file in listing.files}
    files = {}
    for path in _split_files(source, folder, follow_links=source.follow_links):
        root = folder.resolve()
        name = nfc(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)
        file = listed.get(name) or SourceFile(path, name, path.stat())
        if matches(name, source.exclude) or (source.include and not matches(name, source.include)) or not file.bytes:
            continue  # the listing counted it
        _require_format(name, source)
        files[name] = file

    left_out.update(listing.left_out)
    left_out.update([f"not of the split {source.split}"] * len(listed.keys() - files.keys()))
    return [files[name] for name in sorted(files)]


def _on_hub(source: Origin, left_out: Counter[str]) -> list[RemoteFile]:
    by_name = {file.name: file for file in hub_files(source, pinned_revision(source))}
    with TemporaryDirectory(prefix="gatehouse-") as temporary:
        # The split is found in a folder of empty files with the same names: the rule is the same, and needs no network.
        folder = Path(temporary).resolve() / "dataset"
        for name, file in by_name.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(from_hub(file, source.name)[0].read_bytes() if name in _CARDS else b"")
        named = [path.relative_to(folder).as_posix() for path in _split_files(source, folder, follow_links=False)]

    files = []
    for name in sorted(by_name):
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        reason = None if name in named else HIDDEN if is_hidden else f"not of the split {source.split}"
        if reason is None:
            if reason_to_leave_out(name, source) != EXCLUDED:
                _require_format(name, source)
            reason = reason_to_leave_out(name, source) or (None if by_name[name].bytes else EMPTY)
        if reason is None:
            files.append(by_name[name])
        else:
            left_out[reason] += 1
    return files


def _require_format(name: str, source: Origin) -> None:
    if format_in(name, source) is None:
        raise SourceError(
            f"source {source.name}: the file {name} of {source.dataset} has no format that can be read; exclude it"
        )


def _split_files(source: Origin, folder: Path, follow_links: bool) -> list[Path]:
    """The files that a split of a dataset in a folder names.

    Raises:
        SourceError: There is no such split, or it holds what is not read.
    """
    import datasets  # takes 1.5 s, and most recipes have no dataset

    with TemporaryDirectory(prefix="gatehouse-") as cache:
        try:
            builder = datasets.load_dataset_builder(str(folder), source.config, cache_dir=cache)
        except Exception as error:  # the library documents no errors
            raise _unreadable(source, error) from error
    _check_builder(builder, source, folder, follow_links)
    by_split = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    if source.split not in by_split:
        raise SourceError(
            f"source {source.name}: the dataset {source.dataset} has no split {source.split}, only "
            f"{', '.join(sorted(by_split)) or 'none'}; name one of them as it is"
        )
    return [Path(file) for file in dict.fromkeys(by_split[source.split])]


def _check_builder(builder: Any, source: Origin, folder: Path, follow_links: bool) -> None:
    """Refuse formats that are not tables of text, and a card that asks for what is not done.

    It may name files outside the dataset's folder, or say how files are read.
    """
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _FORMATS:
        raise SourceError(
            f"source {source.name}: the dataset {source.dataset} holds {kind} files, and Gatehouse reads "
            f"{', '.join(_FORMATS)}; convert it"
        )
    if options := _options(builder.config):
        raise SourceError(
            f"source {source.name}: the card of {source.dataset} sets {', '.join(options)}, and its files are read "
            "without it; convert them, or give them as a folder by path"
        )
    if follow_links:
        return

    root = os.path.realpath(folder)
    for file in itertools.chain.from_iterable((builder.config.data_files or {}).values()):
        if not os.path.realpath(file).startswith(f"{root}{os.sep}"):
            raise SourceError(
                f"source {source.name}: {source.dataset} names the file {file}, which lies outside of it; "
                "set follow_links: true of the source to read it, or correct the folder's README.md"
            )


def _options(config: Any) -> list[str]:
    """What a dataset's card sets of how its files are read, such as a separator or a filter of rows."""
    return [
        field.name
        for field in fields(config)
        if field.name not in _NO_OPTIONS
        and getattr(config, field.name)
        != (field.default if field.default_factory is MISSING else field.default_factory())
    ]


def _unreadable(source: Origin, error: Exception) -> SourceError:
    message = str(error).strip()[:LONGEST_MESSAGE] or type(error).__name__
    return SourceError(
        f"source {source.name}: the dataset {source.dataset} cannot be read ({message}); check its name, "
        "config, split and revision"
    )
