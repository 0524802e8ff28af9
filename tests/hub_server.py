"""A local web server that answers the part of the hub's API that a dataset's files are read by. It is not the hub."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

_TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
DATASET, COMMIT, NEXT = "somebody/texts", "0123456789abcdef0123456789abcdef01234567", "f" * 40
LARGE = 1000  # bytes from which on a file is named by its SHA-256, as with git LFS


class HubServer(http.server.ThreadingHTTPServer):
    """The server.

    Attributes:
        files: Commit to the files of the dataset.
        main: The commit that `main` means.
        asked: Method and path of each request.
        status: Answer everything with this status.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.files, self.main = files, COMMIT
        self.asked: list[tuple[str, str]] = []
        self.status = 200

    def connect(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make this process take it for the hub, as HF_ENDPOINT and HF_HUB_CACHE do in a fresh one."""
        address = f"http://127.0.0.1:{self.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + _TEMPLATE)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def handle_error(self, *_: object) -> None:
        """A client that leaves is no error."""


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        if self.server.status != 200:
            self._send(self.server.status, b"", {}, body)
        elif match := re.fullmatch(rf"/api/datasets/{DATASET}/revision/(\w+)", path):
            commit = self.server.main if match[1] == "main" else match[1]
            self._send(200, json.dumps({"id": DATASET, "sha": commit, "siblings": []}).encode(), {}, body)
        elif match := re.fullmatch(rf"/api/datasets/{DATASET}/tree/(\w+)(/.*)?", path):
            tree = [entry(name, data) for name, data in self.server.files[match[1]].items()]
            self._send(200, json.dumps(tree).encode(), {}, body)
        elif match := re.fullmatch(rf"/datasets/{DATASET}/resolve/(\w+)/(.+)", path):
            data = self.server.files[match[1]][match[2]]
            tag = entry(match[2], data)
            etag = tag["lfs"]["oid"] if "lfs" in tag else tag["oid"]
            self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": match[1]}, body)
        else:
            self._send(404, b"", {}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def entry(name: str, data: bytes) -> dict[str, Any]:
    """What the hub lists of a file."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    file: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git}
    if len(data) >= LARGE:
        file["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return file


@contextmanager
def serving(files: dict[str, dict[str, bytes]]) -> Iterator[HubServer]:
    """Serve a dataset until the end."""
    server = HubServer(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
