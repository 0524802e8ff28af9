"""Dagster's webserver and daemon and an MLflow server, until Ctrl-C.

If the webserver or the daemon dies, all of them are ended with a message, and the runs get the time to save a
checkpoint. An MLflow server or a code server that dies is started again, and runs go on. Where MLflow is a server
already, none is started.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

import yaml
from rich.console import Console
from rich.markup import escape

from pipeline.addresses import experiment_url, graph_url
from pipeline.cli.console import make_console
from pipeline.cli.repair import repair
from pipeline.cli.server import Server, Standby
from pipeline.defs.dead_runs import clean_up, note_code_servers
from pipeline.defs.instance import open_instance
from pipeline.graph import DEFAULT_RECIPE
from pipeline.jobs import orphans
from pipeline.jobs.locks import held
from pipeline.paths import ROOT, home, mlflow_url, runs, tracking_server, tracking_uri
from pipeline.tracking.database import prepare
from pipeline.workspace import Workspace
from training.errors import Busy

LOCK_FILE = "up.lock"


def serve(recipes: list[str], dagster_port: int, mlflow_port: int) -> None:
    """Start the servers on 127.0.0.1, print their addresses, and end all of them when asked to stop.

    Raises:
        RecipeError: A recipe is wrong.
        Busy: A port is in use, or the state's folder is served already.
        GatehouseError: Dagster's webserver or daemon ended by itself; the message holds the end of its log.
    """
    workspaces = {recipe: Workspace(recipe) for recipe in (DEFAULT_RECIPE, *recipes)}
    # A wrong recipe is found here, before anything is touched.
    names = {recipe: workspace.name for recipe, workspace in workspaces.items()}

    lock = home() / LOCK_FILE
    with held(lock, "gatehouse up", f"%s serves {home()} already; use that one, or end it and start again"):
        console = make_console()
        _clean_up(lock, console)
        _require_free(dagster_port, "--port")
        if not tracking_server():
            _require_free(mlflow_port, "--mlflow-port")
        instance = open_instance()
        for workspace in workspaces.values():
            repair(workspace, instance, console)

        mlflow = None if tracking_server() else _mlflow_server(mlflow_port, lock)
        command = _dagster_command(names, dagster_port)
        dagster = Server("dagster", command, f"http://127.0.0.1:{dagster_port}", "/server_info", lock)
        os.environ["GATEHOUSE_DAGSTER_URL"] = dagster.url
        _serve(dagster, mlflow, list(names.values()), lock, console)


def _serve(dagster: Server, mlflow: Server | None, names: list[str], lock: Path, console: Console) -> None:
    """Start the servers, print where they are, and look after them until a signal comes.

    Args:
        mlflow: None where MLflow is a server already.
        names: The recipes that are shown.
    """
    servers = [mlflow, dagster] if mlflow else [dagster]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT too: it may be inherited as ignored
        signal.signal(number, _stop)

    try:
        for server in servers:
            server.start()
        with console.status("starting the servers ..."):
            for server in servers:
                server.await_answer()

        for line in _addresses(names, dagster.url, mlflow_url()):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(
            f"logs     {home() / 'logs'}\nCtrl-C ends {'both' if mlflow else 'Dagster'}.",
            highlight=False,
            soft_wrap=True,
        )
        _watch(dagster, mlflow, console)
    except KeyboardInterrupt:
        console.print("stopping ...")
    finally:
        for server in servers:
            server.end()
        _clean_up(lock, console)
    console.print("Nothing is left running.")


def _mlflow_server(port: int, lock: Path) -> Server:
    server = Server("mlflow", _mlflow_command(port), f"http://127.0.0.1:{port}", "/health", lock)
    prepare(tracking_uri())
    os.environ["GATEHOUSE_MLFLOW_URL"] = server.url
    os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri()  # every user could read a password on the command line
    return server


def _addresses(names: list[str], dagster: str, mlflow: str) -> list[str]:
    """Addresses that open on the graph and on each recipe's runs."""
    return [
        f"Dagster  [link]{dagster}[/]   runs, gates, schedules",
        f"graph    [link]{graph_url(dagster)}[/]",
        *(
            f"MLflow   [link]{escape(experiment_url(mlflow, name))}[/]   metrics, models and lineage of {name}"
            for name in names
        ),
    ]


def _watch(dagster: Server, mlflow: Server | None, console: Console) -> None:
    """Look after the servers for ever.

    Raises:
        GatehouseError: Dagster's webserver or daemon has ended: without them no run can be seen, stopped or started.
    """
    standby = mlflow and Standby(mlflow, "MLflow's server", partial(console.print, markup=False, highlight=False))

    while True:
        note_code_servers(home(), dagster.code_server_sockets())
        for _ in range(10):
            time.sleep(0.5)
            dagster.require_alive()

        if standby:
            standby.look()
        for location in dagster.revive_code_servers():
            console.print(
                f"The code server of {location} has ended; it is started again. Runs that it had started go on.",
                highlight=False,
            )


def _clean_up(lock: Path, console: Console) -> None:
    """End and mark what was left by a killed `gatehouse up` or by killed runs; none of its servers may be running."""
    for line in (orphans.end(lock), *clean_up(open_instance(), home(), runs(), servers_ended=True)):
        if line:
            console.print(line, highlight=False)


def _mlflow_command(port: int) -> list[str]:
    artifacts = home() / "mlflow" / "artifacts"
    return [
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
        "--default-artifact-root",
        artifacts.as_uri(),
    ]


def _dagster_command(names: dict[str, str], port: int) -> list[str]:
    """What starts Dagster with a code location for each recipe.

    Args:
        names: Recipe, by name or path, to its own name.
    """
    workspace = ROOT / "workspace.yaml"
    more = {recipe: name for recipe, name in names.items() if recipe != DEFAULT_RECIPE}
    if more:
        locations = yaml.safe_load(workspace.read_text(encoding="utf-8"))
        for recipe, name in more.items():
            module = {"module_name": "pipeline.definitions", "attribute": recipe, "location_name": name}
            locations["load_from"].append({"python_module": module})
        workspace = home() / "workspace.yaml"
        workspace.write_text(yaml.safe_dump(locations), encoding="utf-8")

    return [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "--workspace",
        str(workspace),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Busy(f"port {port} is in use: choose another one with {option}, or end what uses it") from error


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
