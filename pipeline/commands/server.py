"""One server of `gatehouse up`: started under a supervisor, watched, and ended with all that it has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from pipeline import leftovers
from pipeline.environment import ROOT, home
from pipeline.recipe import load_launchers
from training.errors import GatehouseError

_GRACE = 15.0
_START_SECONDS = 120
_YOUNG_SECONDS = 30
_RELOAD = ("mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename ... on "
           "PythonError { message } } }")


class Server:
    """A server and what it starts, among that the runs that are started in the browser.

    Args:
        name: Names its log.
        command: Starts it.
        url: Where it answers.
        probe: Path of the URL that answers once it is ready.
        lock: What its processes are marked with.
    """

    def __init__(self, name: str, command: list[str], url: str, probe: str, lock: Path) -> None:
        self.url = url
        self._name = name
        self._probe = probe
        self._log = home() / "logs" / f"{name}.log"
        # Runs wait for their jobs, which may take their launcher's grace period.
        self._grace = _GRACE + max(launcher.grace_seconds for launcher in load_launchers().values())
        self._command = [sys.executable, "-m", "training.supervisor", str(self._grace), *command]
        self._marks = leftovers.marks(lock, "", self._grace)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its log begins anew."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # The workspace says which recipes there are; these variables would put another one in tiny's place.
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("DAGSTER_MODULE_NAME", "GATEHOUSE_RECIPE")}
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=output,
                                             stderr=output, start_new_session=True, env=environment | self._marks)

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def require_alive(self) -> None:
        """Raise GatehouseError with the end of its log if it has ended."""
        if not self.alive():
            code = self._process.returncode if self._process else None
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise GatehouseError(f"{self._name} ended by itself with exit code {code}; the end of its log:\n{end}")

    def await_answer(self) -> None:
        """Wait until it answers.

        Raises:
            GatehouseError: It ended, or does not answer in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self.require_alive()
            try:
                with urllib.request.urlopen(self.url + self._probe, timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise GatehouseError(f"{self._name} did not answer at {self.url} within {_START_SECONDS} s; its log is "
                             f"{self._log}")

    def revive_code_servers(self) -> list[str]:
        """Have Dagster start again the code servers that were killed; `dagster dev` looks after their parents only.

        Returns:
            The code locations whose server was started.
        """
        return [name for name in self._locations_without_server() if self._reload(name)]

    def end(self) -> None:
        """Ask it to end, and wait until nothing of it is left but what its supervisor could not end."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(self._grace + _GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _locations_without_server(self) -> list[str]:
        assert self._process is not None
        found = []
        try:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                command = process.cmdline()
                # One that is young has still to start its own child.
                if ("code-server" in command and time.time() - process.create_time() > _YOUNG_SECONDS
                        and not process.children()):
                    found.append(command[command.index("--location-name") + 1])
        except psutil.Error:  # one ended just now: the next look tells
            return []
        return found

    def _reload(self, location: str) -> bool:
        request = urllib.request.Request(
            f"{self.url}/graphql", json.dumps({"query": _RELOAD, "variables": {"name": location}}).encode(),
            {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_START_SECONDS) as answer:
                done = json.load(answer)
        except (urllib.error.URLError, OSError):  # no webserver: the next look at it ends all
            return False
        return bool(done["data"]["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry")
