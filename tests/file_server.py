"""A real web server of a few files, and what can be wrong with one."""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

Answer = Callable[["FileRequest"], None]


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `files`, with ETag, Range and If-Range as RFC 9110 has them.

    Attributes:
        files: Path to bytes.
        answers: Replace the right answer of a GET that asks for more than a first byte, the first one first.
        requests: Path, Range and If-Range of each request.
        etags: Path to another ETag than the digest of the bytes.
        headers: Are sent with each answer.
        needs: The `Authorization` that a request must have; any by default.
        sent: Bytes of files that were sent.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), FileRequest)
        self.files = files
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str, str]] = []
        self.etags: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.needs: str | None = None
        self.sent = 0

    def handle_error(self, *_: object) -> None:
        """A client that leaves in the middle of an answer is no error."""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def etag(self, path: str) -> str:
        """The mark of a file's version."""
        return self.etags.get(path, f'"{hashlib.md5(self.files[path]).hexdigest()}"')


class FileRequest(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    @property
    def file(self) -> str:
        """The path without a query."""
        return urlsplit(self.path).path

    @property
    def data(self) -> bytes:
        """The whole file."""
        return self.server.files[self.file]

    @property
    def start(self) -> int:
        """The first byte that is asked for."""
        match = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        return int(match[1]) if match else 0

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.requests.append((self.path, asked, self.headers.get("If-Range", "")))
        if self.server.needs is not None and self.headers.get("Authorization") != self.server.needs:
            self.fail(403)
        elif self.file not in self.server.files:
            self.fail(404)
        elif asked != "bytes=0-0" and self.server.answers:
            self.server.answers.pop(0)(self)
        elif asked and self.headers.get("If-Range", self.server.etag(self.file)) == self.server.etag(self.file):
            self.part(self.start, 1 if asked == "bytes=0-0" else None)
        else:
            self.whole()

    def whole(self, sent: int | None = None) -> None:
        """Answer with the whole file; of less than all bytes that are sent, the connection breaks off."""
        self.answer(200, self.data, sent, {})

    def part(self, start: int, size: int | None = None, sent: int | None = None) -> None:
        """Answer with the file's bytes from `start` on."""
        end = len(self.data) if size is None else min(start + size, len(self.data))
        if start >= len(self.data):
            self.fail(416, {"Content-Range": f"bytes */{len(self.data)}"})
            return
        self.answer(206, self.data[start:end], sent, {"Content-Range": f"bytes {start}-{end - 1}/{len(self.data)}"})

    def answer(self, status: int, body: bytes, sent: int | None, headers: dict[str, str]) -> None:
        """Answer with a body, or with its beginning."""
        own = {"ETag": self.server.etag(self.file), "Content-Length": str(len(body)), **headers, **self.server.headers}
        self.send_response(status)
        for name, value in own.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        body = body if sent is None else body[:sent]
        self.server.sent += len(body)
        self.wfile.write(body)
        self.close_connection = sent is not None or "" in own.values()

    def fail(self, status: int, headers: dict[str, str] | None = None) -> None:
        """Answer without a file."""
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()


def digest_header(data: bytes) -> str:
    """`Repr-Digest` of some bytes."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serve files until the end."""
    server = FileServer(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
