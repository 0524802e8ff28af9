"""One server of `gatehouse up`: started under a supervisor, watched, and ended with everything it has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import psutil

from pipeline.jobs import orphans
from pipeline.paths import ROOT, home
from pipeline.recipes.loader import load_launchers
from pipeline.tracking.connection import without_password
from training.errors import GatehouseError

_GRACE = 15.0
_START_SECONDS = 120
_YOUNG_SECONDS = 30
_AGAIN_SECONDS = 30
_RELOAD = (
    "mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename ... on "
    "PythonError { message } } }"
)


class Server:
    """A server and what it starts, which includes the runs that are started in the browser.

    Args:
        name: The name of its log.
        command: Starts it.
        url: Where it answers.
        probe: Path of the URL that answers once it is ready.
        lock: The lock of its owner; its processes are marked with it.

    Attributes:
        log: What it prints.
    """

    def __init__(self, name: str, command: list[str], url: str, probe: str, lock: Path) -> None:
        self.url = url
        self._name = name
        self._probe = probe
        self.log = home() / "logs" / f"{name}.log"

        # Runs wait for their jobs, and a job may take its launcher's grace period to end.
        self._grace = _GRACE + max(launcher.grace_seconds for launcher in load_launchers().values())
        self._command = [sys.executable, "-m", "training.job.supervisor", str(self._grace), *command]
        self._marks = orphans.ownership_env(lock, "", self._grace)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its log begins anew."""
        self.log.parent.mkdir(parents=True, exist_ok=True)

        # The workspace says which recipes there are; these variables would put another one in tiny's place.
        environment = {
            name: value for name, value in os.environ.items() if name not in ("DAGSTER_MODULE_NAME", "GATEHOUSE_RECIPE")
        }
        environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # its output is a log, whatever the terminal takes

        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment | self._marks,
            )

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def require_alive(self) -> None:
        """Raise GatehouseError with the end of its log if it has ended."""
        if not self.alive():
            code = self._process.returncode if self._process else None
            end = without_password("\n".join(self.log.read_text(errors="replace").splitlines()[-15:]))
            raise GatehouseError(f"{self._name} ended by itself with exit code {code}; the end of its log:\n{end}")

    def answers(self) -> bool:
        """Whether it answers now; the question takes two seconds at most."""
        try:
            with urllib.request.urlopen(self.url + self._probe, timeout=2):
                return True
        except (OSError, HTTPException):
            return False

    def await_answer(self) -> None:
        """Wait until it answers.

        Raises:
            GatehouseError: It ended, or does not answer in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self.require_alive()
            if self.answers():
                return
            time.sleep(0.3)

        raise GatehouseError(
            f"{self._name} did not answer at {self.url} within {_START_SECONDS} s; its log is {self.log}"
        )

    def revive_code_servers(self) -> list[str]:
        """Have Dagster start again the code servers that were killed; `dagster dev` looks after their parents only.

        Returns:
            The code locations whose server was started.
        """
        return [name for name in self._locations_without_server() if self._reload(name)]

    def end(self) -> None:
        """Ask it to end, and wait until it has ended with everything that its supervisor can end."""
        if self._process is None:
            return

        assert self._process.stdin is not None
        self._process.stdin.close()  # the supervisor takes this for the request to end
        try:
            self._process.wait(self._grace + _GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def code_server_sockets(self) -> list[str]:
        """Where Dagster's code servers listen. A run that one of them has started names its socket in a tag."""
        try:
            return [
                command[command.index("--socket") + 1] for _, command in self._code_servers() if "--socket" in command
            ]
        except psutil.Error:  # one ended just now: the next look tells
            return []

    def _locations_without_server(self) -> list[str]:
        try:
            # One that is young has still to start its own child.
            return [
                command[command.index("--location-name") + 1]
                for process, command in self._code_servers()
                if time.time() - process.create_time() > _YOUNG_SECONDS and not process.children()
            ]
        except psutil.Error:
            return []

    def _code_servers(self) -> list[tuple[psutil.Process, list[str]]]:
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        commands = [(process, process.cmdline()) for process in children]
        return [(process, command) for process, command in commands if "code-server" in command]

    def _reload(self, location: str) -> bool:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": _RELOAD, "variables": {"name": location}}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_START_SECONDS) as answer:
                done = json.load(answer)
        except (urllib.error.URLError, OSError):  # no webserver: the next look at it ends all
            return False
        return bool(done["data"]["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry")


class Standby:
    """Starts a server again when it has ended, and never waits for it. No run needs that server.

    Args:
        server: Has been started.
        name: What messages call it.
        log_line: Called with what happens, once for each thing.
    """

    def __init__(self, server: Server, name: str, log_line: Callable[[str], None]) -> None:
        self._server = server
        self._name = name
        self._log_line = log_line
        self._started = 0.0
        self._ended = 0  # times since it last answered

    def look(self) -> None:
        """Start it again if it has ended, and not just now."""
        age = time.monotonic() - self._started
        if self._server.alive():
            # A young one may not have noticed yet that its port is taken: what answers there is another server.
            if self._ended and age > _YOUNG_SECONDS and self._server.answers():
                self._ended = 0
                self._log_line(f"{self._name} answers again.")
        elif not self._started or age > _AGAIN_SECONDS:
            self._ended += 1
            if self._ended == 1:
                self._log_line(f"{self._name} has ended; it is started again.")
            elif self._ended == 2:
                self._log_line(
                    f"{self._name} does not start; that is tried again every {_AGAIN_SECONDS} s, and runs go on "
                    f"without it. Its log is {self._server.log}."
                )

            self._started = time.monotonic()
            with suppress(OSError):  # the disk is full: a later look tries again
                self._server.start()
