"""A real MLflow server, and a TCP proxy before it that can be broken in several ways."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from pipeline.jobs.local import free_port
from tests.patience import Patience

_CHUNK = 65536


class Proxy:
    """Passes on what comes, as its mode says.

    Modes: `open`; `closed` resets every connection; `silent` takes requests and answers nothing; `slow` answers after
    `delay` seconds; `cut` passes requests on, so that the server does its work, and resets the answer in its middle.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.mode = "open"
        self.delay = 1.0
        self._target = target
        self._random = Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def end(self) -> None:
        self._ended = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, socket.create_connection(("127.0.0.1", self._target)) as server:
                while not self._ended and self.mode != "closed":
                    for ready in select.select([client, server], [], [], 0.05)[0]:
                        if not self._pass_on(ready, client, server):
                            return
                _reset(client)
        except OSError:
            return

    def _pass_on(self, ready: socket.socket, client: socket.socket, server: socket.socket) -> bool:
        data = ready.recv(_CHUNK)
        if not data:
            return False
        if ready is client:
            if self.mode != "silent":
                server.sendall(data)
        elif self.mode == "cut":
            client.sendall(data[: self._random.randrange(len(data))])
            _reset(client)
            return False
        else:
            if self.mode == "slow":
                time.sleep(self.delay)
            client.sendall(data)
        return True


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def mlflow_server(folder: Path, backend: str = "") -> Iterator[int]:
    """An MLflow server on 127.0.0.1; yields its port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        backend or f"sqlite:///{folder}/mlflow.db",
        "--default-artifact-root",
        (folder / "artifacts").as_uri(),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        patience = Patience(120)
        while True:
            assert process.poll() is None and not patience.is_over(), (folder / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield port
    finally:
        os.killpg(process.pid, 9)
        process.wait()
