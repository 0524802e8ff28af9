"""Files in S3 buckets: a listing that is never old, and a file's bytes from any place on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from training.data.sources.remote_files import Interrupted, RemoteFile, changed, refused, with_variables
from training.errors import SourceError

_CHUNK = 8 << 20
_MAGIC = re.compile(r"[*?\[]")
_REFUSED = (
    "AccessDenied", "AllAccessDisabled", "AuthFailure", "ExpiredToken", "ExpiredTokenException", "Forbidden",
    "InvalidAccessKeyId", "InvalidToken", "RequestExpired", "SignatureDoesNotMatch", "TokenRefreshRequired", "401",
    "403",
)  # fmt: skip
_REMEDY = (
    "renew the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE) and see "
    "that they may read it"
)


def s3_files(address: str, source: str) -> Iterator[tuple[str, RemoteFile]]:
    """The objects that an address means, by the names that they have below its folder: a folder, an object or a glob.

    Raises:
        SourceError: The bucket cannot be listed.
    """
    path = with_variables(address, source).partition("://")[2].rstrip("/")
    magic = _MAGIC.search(path)
    root = path[: path.rfind("/", 0, magic.start())] if magic and "/" in path[: magic.start()] else path
    with _errors(source, address):
        # A client of its own: a kept one would hold credentials that were renewed since.
        client = _client(skip_instance_cache=True)
        objects = client.glob(path, detail=True) if magic else client.find(path, detail=True)
    for key, info in sorted(objects.items()):
        if info.get("type") == "directory" or key.endswith("/"):
            continue
        name = key.rpartition("/")[2] if key == root else key[len(root) :].lstrip("/")
        modified = info.get("LastModified", "")
        moment = modified.isoformat() if hasattr(modified, "isoformat") else str(modified)
        yield name, RemoteFile(f"s3://{key}", name, int(info["size"]), str(info.get("ETag", "")), moment)


@contextmanager
def s3_bytes(file: RemoteFile, source: str, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """An object's bytes from `offset` on; see `http_bytes`.

    Each request names the version that was listed, so that bytes of two versions are never mixed.
    """
    with _errors(source, file.address):
        client = _client()
        info = client.info(file.address)
        if (int(info["size"]), str(info.get("ETag", ""))) != (file.bytes, file.etag):
            raise changed(source, file)
        opened = client.open(file.address, "rb", block_size=_CHUNK, cache_type="none")

    def chunks() -> Iterator[bytes]:
        from s3fs.utils import FileExpired

        with _errors(source, file.address):
            try:
                opened.seek(offset)
                while chunk := opened.read(_CHUNK):
                    yield chunk
            except FileExpired:
                raise changed(source, file) from None

    with opened:
        yield offset, chunks()


def _client(**options: bool) -> Any:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False, **options)


@contextmanager
def _errors(source: str, address: str) -> Iterator[None]:
    """Turn what s3fs raises into words, by the server's code and never by a library's own words."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise SourceError(
            f"source {source}: {address}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE; a public file can be given by its https:// address"
        ) from None
    except FileNotFoundError:
        raise SourceError(f"source {source}: {address} does not exist; correct its path in the recipe") from None
    except (OSError, BotoCoreError, ClientError) as error:
        code, kind = _code(error), type(error).__name__
        # botocore has a class of its own for each way in which credentials cannot be renewed.
        if code in _REFUSED or isinstance(error, PermissionError) or re.search("Token|Credential|Login", kind):
            raise refused(source, address, code or kind, _REMEDY) from None
        raise Interrupted(code or kind) from None


def _code(error: BaseException) -> str:
    """The S3 error code behind an error; empty where there is none."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))[:40]
    return ""
