"""A real server that speaks S3 over HTTP, and what can be wrong with one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

SECRET = "canary-0f6c2b9e51d7"
BUCKET = "models"
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_MOTO_BEGAN = b"2010-11-10T20:48:33.000Z"


class ObjectServer:
    """An S3 server whose requests are served one at a time, so that a condition and its write are one step, as in S3.

    Attributes:
        conditions: What it does with `If-None-Match`: `honoured`, `ignored`, or `refused` as not implemented.
        refuse: Says of a request, by its method and its path with the query, whether it is denied.
        uploads_are_new: Show multipart uploads as begun now; else as begun years ago.
    """

    def __init__(self) -> None:
        self._application: Application = DomainDispatcherApplication(create_backend_app)
        self._one = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Behave."""
        self.conditions = "honoured"
        self.refuse: Callable[[str, str], bool] = lambda _method, _path: False
        self.uploads_are_new = False

    def __call__(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = f"{request['PATH_INFO']}?{request['QUERY_STRING']}"
        if self.refuse(request["REQUEST_METHOD"], path):
            return _error(request, start, "403 Forbidden", "AccessDenied")
        if "HTTP_IF_NONE_MATCH" in request and self.conditions != "honoured":
            if self.conditions == "refused":
                return _error(request, start, "501 Not Implemented", "NotImplemented")
            del request["HTTP_IF_NONE_MATCH"]
        with self._one:
            answer = self._application(request, start)
            if not self.uploads_are_new or "uploads" not in request["QUERY_STRING"]:
                return answer
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()).encode()
            return [part.replace(_MOTO_BEGAN, now) for part in answer]


def _error(request: dict[str, Any], start: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
    start(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]


@contextmanager
def serving(server: ObjectServer) -> Iterator[str]:
    """Serve until the end; gives the address."""
    listener = make_server("127.0.0.1", 0, server, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.server_port}"
    listener.shutdown()
    thread.join()
