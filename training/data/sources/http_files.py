"""Files on web servers: what a server says of a file, and its bytes from any place on.

No error holds a library's own words or a whole address: both may hold a signature or a password.
"""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from training.data.sources.formats import compression_of
from training.data.sources.remote_files import Interrupted, RemoteFile, changed, refused, with_variables
from training.errors import SourceError
from training.specs.addresses import scheme_of, shown_address

if TYPE_CHECKING:
    from requests import Response

_TIMEOUT = (10, 60)  # seconds to connect, and between two packets
_LISTING_WAITS = (0.5, 2.0)  # seconds; a sensor's look should not take long
_LONGEST_WAIT = 60  # seconds that a server may ask for
_CHUNK = 1 << 20
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_ENCODINGS = {"gzip": ".gz", "x-gzip": ".gz", "zstd": ".zst", "x-bzip2": ".bz2", "x-xz": ".xz"}
_DIGEST = re.compile(r"sha-256=:?([A-Za-z0-9+/]{43}=)")
_REMEDY = "renew the credentials in the environment variables of its address, or in ~/.netrc"


class _NoQueries(logging.Filter):
    """Keeps lines out of the log that hold a query, where signatures are."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "?" not in record.getMessage()


logging.getLogger("urllib3.connectionpool").addFilter(_NoQueries())


def http_file(address: str, name: str, source: str) -> RemoteFile:
    """What a server says of a file.

    Asks for its first byte: many addresses are signed for GET alone, and answer HEAD with a refusal.

    Raises:
        SourceError: It is not there, may not be read, or the server does not say what a change could be seen by.
    """
    shown = shown_address(address)
    for wait in (*_LISTING_WAITS, None):
        try:
            with _opened(address, source, {"Range": "bytes=0-0"}) as response:
                return _described(response, address, name, source)
        except Interrupted as error:
            if wait is None:
                raise SourceError(f"source {source}: {shown} cannot be reached ({error.reason}); try again") from None
            time.sleep(wait)
    raise AssertionError


def _described(response: Response, address: str, name: str, source: str) -> RemoteFile:
    headers, shown = response.headers, shown_address(address)
    total = headers.get("Content-Range", "").rpartition("/")[2]
    size = total if response.status_code in (206, 416) else headers.get("Content-Length", "")
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if not size.isdigit() or not (etag or modified):
        missing = "no size" if not size.isdigit() else "neither ETag nor Last-Modified"
        raise SourceError(
            f"source {source}: {shown}: the server gives {missing}, so a change or a loss could not be seen; "
            "download the file and give its path"
        )
    if response.status_code == 416 and size != "0":
        raise SourceError(f"source {source}: {shown}: the server answers with 416; download the file and give its path")
    return RemoteFile(address, name, int(size), etag, modified, _digest(response))


def _digest(response: Response) -> str:
    """SHA-256 of the whole file where the server gives it (RFC 9530, RFC 3230)."""
    match = _DIGEST.search(response.headers.get("Repr-Digest", "") or response.headers.get("Digest", ""))
    return base64.b64decode(match[1]).hex() if match else ""


@contextmanager
def http_bytes(file: RemoteFile, source: str, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Where a file's bytes begin that the server sends, at most at `offset`, and the bytes up to its end.

    A server may ignore what was asked and send the whole file.

    Raises:
        Interrupted: The connection or the server failed, also while the bytes are read.
        SourceError: The file is another one than was listed, is gone, or may not be read.
    """
    validator = file.modified if not file.etag else "" if file.etag.startswith("W/") else file.etag
    # A weak ETag promises no equal bytes (RFC 9110, 13.1.5), so the file is fetched from its beginning.
    offset = offset if validator else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset else {}
    with _opened(file.address, source, headers) as response:
        yield _start(response, file, source, offset), _chunks(response)


def _start(response: Response, file: RemoteFile, source: str, offset: int) -> int:
    if response.status_code == 416:
        raise Interrupted("it does not give the rest", restart=True)

    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    is_another = etag != file.etag if etag and file.etag else modified != file.modified
    if is_another:
        raise changed(source, file)

    if response.status_code == 206:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) > offset or (file.etag and not etag):
            raise Interrupted("it answered with another range", restart=True)
        if int(match[3]) != file.bytes:
            raise changed(source, file)
        return int(match[1])

    if response.headers.get("Content-Length", str(file.bytes)) != str(file.bytes):
        raise changed(source, file)
    return 0


def _chunks(response: Response) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    try:
        # As they are: a .gz file is often sent as if the server had compressed it.
        yield from response.raw.stream(_CHUNK, decode_content=False)
    except (HTTPError, OSError) as error:
        raise Interrupted(f"the connection broke off, {type(error).__name__}") from None


@contextmanager
def _opened(address: str, source: str, headers: dict[str, str]) -> Iterator[Response]:
    import requests

    shown, refusal = shown_address(address), ""
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"
        try:
            url = with_variables(address, source)
            response = session.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Interrupted(f"no connection, {type(error).__name__}") from None
        except (requests.RequestException, ValueError, UnicodeError) as error:
            refusal = type(error).__name__
        if refusal:
            raise SourceError(f"source {source}: {shown} is no address that can be read ({refusal}); correct it")

        with response:
            if scheme_of(address) == "https" and scheme_of(response.url) != "https":
                raise SourceError(f"source {source}: {shown} leads to an address without TLS; give another address")
            _require_readable(response, shown, source)
            yield response


def _require_readable(response: Response, shown: str, source: str) -> None:
    status = response.status_code
    if status in _AGAIN:
        wait = 0.0
        with suppress(ValueError):  # a date instead of seconds
            wait = min(float(response.headers.get("Retry-After", "0")), _LONGEST_WAIT)
        raise Interrupted(f"the server answers with {status}", wait)
    if status in (401, 403, 407):
        raise refused(source, shown, str(status), _REMEDY)
    if status in (404, 410):
        raise SourceError(f"source {source}: {shown} does not exist ({status}); correct its path in the recipe")
    if status not in (200, 206, 416):
        raise SourceError(f"source {source}: {shown}: the server answers with {status}; correct its path in the recipe")

    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "") and _ENCODINGS.get(encoding) != compression_of(shown):
        raise SourceError(
            f"source {source}: {shown}: the server compresses it ({encoding[:20]}) although it was asked not to; "
            "download the file and give its path"
        )
