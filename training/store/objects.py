"""What an object store needs beyond fsspec's operations: creating an object once, and freeing unfinished uploads."""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from typing import Any, NamedTuple

_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds


class Upload(NamedTuple):
    """A multipart upload that was begun and not completed.

    Attributes:
        path: Bucket and key.
        began: Seconds since the epoch.
    """

    path: PurePosixPath
    id: str
    began: float


def put_if_absent(fs: Any, path: str, data: bytes) -> bool:
    """Make an object unless there is one; return whether it was made.

    Raises:
        NotImplementedError: The server says that it cannot.
        OSError: The server failed.
    """
    for wait in _WAITS:
        try:
            fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except OSError as error:
            code = _code(error)
            if code in ("PreconditionFailed", "412"):
                return False
            if code in ("NotImplemented", "501"):
                raise NotImplementedError(str(error)) from error
            if code not in ("ConditionalRequestConflict", "409"):
                raise
        # The server may refuse both of two requests that arrive at once, and asks to repeat them.
        time.sleep(wait)
    return False


def unfinished_uploads(fs: Any, base: PurePosixPath) -> list[Upload]:
    """The multipart uploads below a path that nobody completed or aborted."""
    bucket, prefix = base.parts[0], "".join(f"{part}/" for part in base.parts[1:])
    uploads: list[Upload] = []
    marker: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
        uploads += [
            Upload(PurePosixPath(bucket, upload["Key"]), upload["UploadId"], upload["Initiated"].timestamp())
            for upload in page.get("Uploads", [])
        ]
        if not page.get("IsTruncated"):
            return uploads
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def abort_upload(fs: Any, upload: Upload) -> None:
    """Abort a multipart upload, which frees what it had stored; it may be gone already."""
    bucket, *key = upload.path.parts
    try:
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key="/".join(key), UploadId=upload.id)
    except FileNotFoundError:
        return


def _code(error: OSError) -> str:
    """The S3 error code behind an OSError of s3fs; empty when there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
