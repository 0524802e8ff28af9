"""Which remote files a source means. Imports nothing heavy: the control plane uses it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from training.data.sources.http_files import http_file
from training.data.sources.remote_files import Interrupted, RemoteFile
from training.data.sources.s3_files import s3_files
from training.errors import SourceError
from training.specs.addresses import S3, name_in, scheme_of
from training.specs.origin import Origin


def remote_files(source: Origin) -> Iterator[RemoteFile]:
    """The files that a source's addresses mean, in no order, before any of them is left out.

    A file is named as in a folder: by its path below the folder of its address. In a list each name begins with the
    server or the bucket, so that another address in the list changes no name.

    Raises:
        SourceError: A server cannot be reached, refuses access, or has no such file.
    """
    is_listed = isinstance(source.path, tuple)
    for address in source.addresses:
        for name, file in _files_at(address, source.name):
            yield replace(file, name=file.shown.partition("://")[2]) if is_listed else replace(file, name=name)


def _files_at(address: str, source: str) -> Iterator[tuple[str, RemoteFile]]:
    if scheme_of(address) != S3:
        name = name_in(address)
        yield name, http_file(address, name, source)
        return
    try:
        yield from s3_files(address, source)
    except Interrupted as error:  # s3fs tried five times by itself
        raise SourceError(f"source {source}: {address} cannot be reached ({error.reason}); try again") from None
