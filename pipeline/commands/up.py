"""`gatehouse up`: Dagster's webserver and daemon and an MLflow server, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

import dagster as dg
import yaml
from rich.console import Console

from pipeline.commands.promote import repair
from pipeline.environment import ROOT, home, runs, store_root, tracking_uri
from pipeline.graph import DEFAULT_RECIPE
from pipeline.reaper import reap
from pipeline.recipe import load_recipe
from training.errors import Busy, GatehouseError
from training.store import Store

_GRACE = 15.0
_START_SECONDS = 120


def serve(recipes: list[str], dagster_port: int, mlflow_port: int) -> None:
    """Start the servers on 127.0.0.1, print their addresses, and end all of them when asked to stop.

    Raises:
        Busy: A port is in use.
        GatehouseError: A server ended by itself; the message names its log.
    """
    console = Console()
    for port, option in ((dagster_port, "--port"), (mlflow_port, "--mlflow-port")):
        _require_free(port, option)
    for run_id in reap(dg.DagsterInstance.get(), runs()):
        console.print(f"Run {run_id[:8]} was killed in mid-work; it is marked as failed.", highlight=False)
    for recipe in dict.fromkeys([DEFAULT_RECIPE, *recipes]):
        loaded = load_recipe(recipe)
        repair(loaded, Store(store_root(), loaded.recipe.name, cache=home() / "cache"), console)
    urls = {"dagster": f"http://127.0.0.1:{dagster_port}", "mlflow": f"http://127.0.0.1:{mlflow_port}"}
    os.environ.update(GATEHOUSE_DAGSTER_URL=urls["dagster"], GATEHOUSE_MLFLOW_URL=urls["mlflow"])
    logs = home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT too: it may be inherited as ignored
        signal.signal(number, _stop)
    processes = {}
    try:
        processes["mlflow"] = _start(_mlflow(mlflow_port), logs / "mlflow.log")
        processes["dagster"] = _start(_dagster(recipes, dagster_port), logs / "dagster.log")
        with console.status("starting the servers ..."):
            for name, probe in (("dagster", "/server_info"), ("mlflow", "/health")):
                _await(name, urls[name] + probe, processes[name], logs)
        console.print(f"Dagster  [link]{urls['dagster']}[/]   the graph, runs and gates\n"
                      f"MLflow   [link]{urls['mlflow']}[/]   metrics, models and lineage\n"
                      f"logs     {logs}\nCtrl-C ends both.", highlight=False)
        while True:
            time.sleep(0.5)
            for name, process in processes.items():
                _check(name, process, logs)
    except KeyboardInterrupt:
        console.print("stopping ...")
    finally:
        _end(list(processes.values()))
    console.print("Nothing is left running.")


def _mlflow(port: int) -> list[str]:
    artifacts = home() / "mlflow" / "artifacts"
    return [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", tracking_uri(), "--default-artifact-root", artifacts.as_uri()]


def _dagster(recipes: list[str], port: int) -> list[str]:
    workspace = ROOT / "workspace.yaml"
    extra = [recipe for recipe in recipes if recipe != DEFAULT_RECIPE]
    if extra:
        known = yaml.safe_load(workspace.read_text(encoding="utf-8"))
        known["load_from"] += [{"python_module": {"module_name": "pipeline.locations", "attribute": recipe,
                                                  "location_name": recipe}} for recipe in extra]
        workspace = home() / "workspace.yaml"
        workspace.write_text(yaml.safe_dump(known), encoding="utf-8")
    return [sys.executable, "-m", "dagster", "dev", "--workspace", str(workspace), "--host", "127.0.0.1", "--port",
            str(port)]


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    supervised = [sys.executable, "-m", "training.supervisor", str(_GRACE), *command]
    # The workspace says which recipes there are; these variables would put another one in tiny's place.
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("DAGSTER_MODULE_NAME", "GATEHOUSE_RECIPE")}
    with log.open("wb") as output:
        return subprocess.Popen(supervised, cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output,
                                start_new_session=True, env=environment)


def _await(name: str, url: str, process: subprocess.Popen[bytes], logs: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        _check(name, process, logs)
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise GatehouseError(f"{name} did not answer at {url} within {_START_SECONDS} s; its log is {logs / name}.log")


def _check(name: str, process: subprocess.Popen[bytes], logs: Path) -> None:
    if process.poll() is not None:
        end = "\n".join((logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
        raise GatehouseError(f"{name} ended by itself with exit code {process.returncode}; the end of its log:\n{end}")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
    for process in processes:
        process.wait(_GRACE + 15)


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Busy(f"port {port} is in use: choose another one with {option}, or end what uses it") from error


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
