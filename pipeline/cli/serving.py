"""`gatehouse up`: Dagster's webserver and daemon and an MLflow server, until Ctrl-C.

If the webserver or the daemon dies, all ends, with a message: the runs get the time to save a checkpoint. An MLflow
server or a code server that dies is started again, and runs go on. Where MLflow is a server already, none is started.
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
from pipeline.cli.promote import repair
from pipeline.cli.server import Server, Standby
from pipeline.defs.dead_runs import clean_up, note_code_servers
from pipeline.defs.instance import open_instance
from pipeline.graph import DEFAULT_RECIPE
from pipeline.jobs import orphans
from pipeline.jobs.locks import held
from pipeline.paths import ROOT, home, runs, store_root, tracking_server, tracking_uri
from pipeline.recipes.loader import LoadedRecipe, load_recipe
from pipeline.tracking.database import prepare
from training.errors import Busy
from training.store.store import Store

LOCK_FILE = "up.lock"


def serve(recipes: list[str], dagster_port: int, mlflow_port: int) -> None:
    """Start the servers on 127.0.0.1, print their addresses, and end all of them when asked to stop.

    Raises:
        RecipeError: A recipe is wrong.
        Busy: A port is in use, or the state's folder is served already.
        GatehouseError: Dagster's webserver or daemon ended by itself; the message holds the end of its log.
    """
    loaded = [load_recipe(recipe) for recipe in dict.fromkeys([DEFAULT_RECIPE, *recipes])]
    lock = home() / LOCK_FILE
    with held(lock, "gatehouse up", f"%s serves {home()} already; use that one, or end it and start again"):
        _serve(recipes, loaded, dagster_port, mlflow_port, lock)


def _serve(recipes: list[str], loaded: list[LoadedRecipe], dagster_port: int, mlflow_port: int, lock: Path) -> None:
    console = make_console()
    _clean_up(lock, console)
    _require_free(dagster_port, "--port")
    if not tracking_server():
        _require_free(mlflow_port, "--mlflow-port")
    for one in loaded:
        repair(one, Store(store_root(), one.recipe.name, cache=home() / "cache"), console)
    mlflow = (
        None
        if tracking_server()
        else Server("mlflow", _mlflow(mlflow_port), f"http://127.0.0.1:{mlflow_port}", "/health", lock)
    )
    dagster = Server(
        "dagster", _dagster(recipes, dagster_port), f"http://127.0.0.1:{dagster_port}", "/server_info", lock
    )
    servers = [mlflow, dagster] if mlflow else [dagster]
    os.environ["GATEHOUSE_DAGSTER_URL"] = dagster.url
    if mlflow:
        prepare(tracking_uri())
        os.environ["GATEHOUSE_MLFLOW_URL"] = mlflow.url
        os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri()  # a password on the command line is seen by every user
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT too: it may be inherited as ignored
        signal.signal(number, _stop)
    try:
        for server in servers:
            server.start()
        with console.status("starting the servers ..."):
            for server in servers:
                server.await_answer()
        for line in _addresses(recipes, dagster.url, os.environ["GATEHOUSE_MLFLOW_URL"]):
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


def _addresses(recipes: list[str], dagster: str, mlflow: str) -> list[str]:
    """Addresses that open on the graph and on each recipe's runs."""
    names = [load_recipe(recipe).recipe.name for recipe in dict.fromkeys([DEFAULT_RECIPE, *recipes])]
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


def _mlflow(port: int) -> list[str]:
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


def _dagster(recipes: list[str], port: int) -> list[str]:
    workspace = ROOT / "workspace.yaml"
    extra = [recipe for recipe in recipes if recipe != DEFAULT_RECIPE]
    if extra:
        known = yaml.safe_load(workspace.read_text(encoding="utf-8"))
        known["load_from"] += [
            {
                "python_module": {
                    "module_name": "pipeline.definitions",
                    "attribute": recipe,
                    "location_name": load_recipe(recipe).recipe.name,
                }
            }
            for recipe in extra
        ]
        workspace = home() / "workspace.yaml"
        workspace.write_text(yaml.safe_dump(known), encoding="utf-8")
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
