"""Datasets of the Hugging Face hub: their commit, their list of files, and the files in the hub's own cache.

A commit never changes, so its list of files is kept beside the cache's files, and a dataset that was read once is read
again without a network. No error holds a library's own words: the hub leads to addresses that are signed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.sources.remote_files import RemoteFile
from training.errors import SourceError
from training.specs.addresses import HUB
from training.specs.origin import Origin

COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTS = "gatehouse"  # folder beside `snapshots` in the cache of a dataset
_ADDRESS = re.compile(rf"{HUB}://datasets/(?P<dataset>[^@]+)@(?P<commit>[0-9a-f]{{40}})/(?P<name>.+)")
_CHUNK = 1 << 20


def commit_of(source: Origin) -> str:
    """The commit that a dataset's revision means now: a branch or a tag may move.

    Raises:
        SourceError: It has no revision, or the hub knows none of this name. Without a network, the cache knows none.
    """
    revision = source.revision
    if revision is None:
        raise needs_commit(source)
    if COMMIT.fullmatch(revision):
        return revision

    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        reference = _cache_of(source) / "refs" / revision
        commit = reference.read_text().strip() if _is_safe(revision) and reference.is_file() else ""
    else:
        try:
            commit = str(HfApi().dataset_info(str(source.dataset), revision=revision).sha)
        except Exception as error:  # the network and the hub can fail in many ways
            raise not_given(source.name, f"the revision {revision} of {source.dataset}", error) from None
    if not COMMIT.fullmatch(commit):
        raise needs_commit(source)
    return commit


def needs_commit(source: Origin) -> SourceError:
    """What a person is told of a dataset whose commit is not known."""
    return SourceError(
        f"source {source.name}: revision must be the commit of the dataset {source.dataset} (40 hex "
        f"digits, found {source.revision!r}); its page on the hub lists them under Files, History"
    )


def not_given(source: str, what: str, error: Exception) -> SourceError:
    """What a person is told when the hub does not give something."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = type(error).__name__ + (f", {status}" if status else "")
    return SourceError(
        f"source {source}: the hub does not give {what} ({reason}); check its name and revision, set HF_TOKEN where it "
        "is private, and see that the hub can be reached: HF_HUB_OFFLINE=1 leaves only the cache"
    )


def hub_files(source: Origin, commit: str) -> list[RemoteFile]:
    """All files of a dataset at a commit, sorted by name.

    Raises:
        SourceError: The hub does not give the list, or a name in it leads out of the dataset.
    """
    kept = _cache_of(source) / _LISTS / f"{commit}.json"
    if kept.is_file():
        entries = json.loads(kept.read_bytes())
    else:
        from training.store.storage import make_folder, write_durably  # takes fsspec, and the control plane stays light

        entries = _asked_for(source, commit)
        make_folder(kept.parent)
        partial = kept.with_suffix(".partial")
        write_durably(partial, json.dumps(entries).encode())
        partial.replace(kept)
    return [
        RemoteFile(f"{HUB}://datasets/{source.dataset}@{commit}/{name}", name, size, blob, "", sha256)
        for name, size, blob, sha256 in sorted(entries)
    ]


def _asked_for(source: Origin, commit: str) -> list[tuple[str, int, str, str]]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree: list[Any] = list(
            HfApi().list_repo_tree(str(source.dataset), recursive=True, revision=commit, repo_type="dataset")
        )
    except Exception as error:  # the network and the hub can fail in many ways
        raise not_given(source.name, f"the files of {source.dataset} at {commit[:12]}", error) from None

    entries = [
        (file.path, file.lfs.size if file.lfs else file.size, file.blob_id, file.lfs.sha256 if file.lfs else "")
        for file in tree
        if isinstance(file, RepoFile)
    ]
    unsafe = [name for name, *_ in entries if not _is_safe(name)]
    if unsafe:
        raise SourceError(f"source {source.name}: the hub lists the file {unsafe[0]!a} of {source.dataset}")
    return entries


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _cache_of(source: Origin) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=str(source.dataset), repo_type="dataset")


def from_hub(file: RemoteFile, source: str) -> tuple[Path, str]:
    """A file of the hub in the hub's cache, fetched unless it is there, and the SHA-256 (hex) of its bytes.

    Raises:
        SourceError: The hub does not give it, or the cache holds other bytes.
    """
    from huggingface_hub import hf_hub_download

    parts = _ADDRESS.fullmatch(file.address)
    assert parts is not None
    try:
        path = Path(
            hf_hub_download(parts["dataset"], parts["name"], repo_type="dataset", revision=parts["commit"])
        ).resolve()
    except Exception as error:  # the network and the hub can fail in many ways
        raise not_given(source, file.shown, error) from None

    # The hub names a small file by git's digest of it, and a large one by its SHA-256.
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha256.update(chunk)
            git.update(chunk)
    digest = sha256.hexdigest()
    if path.stat().st_size != file.bytes or (digest != file.sha256 if file.sha256 else git.hexdigest() != file.etag):
        raise SourceError(
            f"source {source}: {path} does not hold the bytes that the hub lists for {file.name}; delete it and start "
            "again"
        )
    return path, digest
