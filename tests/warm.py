"""Commands and jobs in processes that need not import their libraries: forked from one that has.

`gatehouse` spends most of its time on importing Dagster and MLflow, a job on importing torch. Where a test is about
what a command or a job does, it is run here; where it is about processes, signals or a terminal, a real one is started.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.patience import Patience, kill_family

ROOT = Path(__file__).resolve().parent.parent
_LARGEST_REQUEST = 1 << 18
_COMMANDS, _JOBS = "commands", "jobs"
_LOADED = {
    _COMMANDS: (
        *(
            f"pipeline.cli.{name}"
            for name in ("app", "chat", "gates", "gc", "preview", "promote", "recipe", "run", "status")
        ),
        *(f"pipeline.cli.{name}" for name in ("sync", "up", "verify", "waive")),
        "mlflow",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
    ),
    _JOBS: ("training.run", *(f"training.stages.{name}_model" for name in ("base", "sft", "dpo", "lora", "evaluate"))),
}
# In place of Python: hands a job or the check of a recipe to the server and stands for it, and runs everything else
# with Python itself.
_STAND_IN = """\
#!{python} -S
import os, sys
if sys.argv[1:3] not in (["-m", "training.run"], ["-m", "training.recipe_check"]):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json, signal, socket
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = {{"command": [{python!r}, *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ)}}
socket.send_fds(server, [json.dumps(request).encode()], [1])
job = int(server.recv(64))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _frame: os.kill(job, number))
code = int(server.recv(64))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def can_run(arguments: Sequence[str], extra: Mapping[str, str]) -> bool:
    """Whether it makes no difference to a command of Gatehouse that its libraries were loaded before it began.

    `up` starts servers of its own, `chat` and `-m pipeline.paths` load little, and a PYTHONPATH is for new processes.
    """
    if "PYTHONPATH" in extra:
        return False
    if arguments[0] == "gatehouse":
        return arguments[1] not in ("up", "chat")
    return tuple(arguments[:3]) == ("python", "-m", "training.run")


def run_command(
    command: Sequence[str], silent_seconds: float = 120, *, cwd: Path, env: Mapping[str, str], python: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `gatehouse` or `python -m training.run`; the same as `tests.patience.run_command` in all that is seen.

    Args:
        python: What the command takes for Python when it starts a job; see `stand_in`.
    """
    address = _server(_COMMANDS if Path(command[0]).name == "gatehouse" else _JOBS)
    request = json.dumps({"command": list(command), "cwd": str(cwd), "env": dict(env), "python": python}).encode()
    with (
        tempfile.TemporaryFile() as output,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server,
    ):
        server.connect(address)
        socket.send_fds(server, [request], [output.fileno()])
        process = int(server.recv(64))

        server.settimeout(0.05)
        size, patience = 0, Patience(silent_seconds)
        while True:
            with suppress(TimeoutError):
                return subprocess.CompletedProcess(command, int(server.recv(64)), _text(output))
            if (grown := os.fstat(output.fileno()).st_size) > size:
                size, patience = grown, Patience(silent_seconds)
            if patience.is_over():
                kill_family(process)
                raise AssertionError(f"{' '.join(command)} hangs; it said:\n{_text(output)}")


@contextmanager
def stand_in() -> Iterator[str]:
    """Path of what forks jobs in the place of Python; a job that is to be killed needs a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "python"
        path.write_text(_STAND_IN.format(python=sys.executable, address=_server(_JOBS)))
        path.chmod(0o755)
        yield str(path)


@contextmanager
def warm_jobs() -> Iterator[None]:
    """Fork the jobs that launchers of this process start."""
    python = sys.executable
    with stand_in() as path:
        sys.executable = path
        try:
            yield
        finally:
            sys.executable = python


def _text(output: Any) -> str:
    output.seek(0)
    return str(output.read().decode(errors="replace"))


@cache
def _server(kind: str) -> str:
    """The address of this process's own server of a kind, which ends with it."""
    from pipeline.jobs.local import job_environment

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    address = f"{folder.name}/{kind}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    subprocess.Popen(
        [sys.executable, "-m", "tests.warm", kind, str(listener.fileno())],
        cwd=ROOT,
        env=job_environment() if kind == _JOBS else {**os.environ, "PYTHONPATH": str(ROOT)},
        pass_fds=[listener.fileno()],
        stdin=subprocess.PIPE,  # its end of file tells the server that this process is gone
        stdout=subprocess.DEVNULL,
    )
    listener.close()
    return address


def _serve(listener: socket.socket) -> Mapping[str, Any]:
    """Fork a process for each request. Returns in the forked processes alone: what they are to do."""
    children: dict[int, socket.socket] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    waiting = selectors.DefaultSelector()
    for source in (0, woken, listener):
        waiting.register(source, selectors.EVENT_READ)

    while True:
        for key, _ in waiting.select():
            if key.fd == 0:
                os._exit(0)
            elif key.fd == woken:
                os.read(woken, 4096)
                _tell_of_ends(children, waiting)
            elif key.fileobj is listener:
                client, _ = listener.accept()
                waiting.register(client, selectors.EVENT_READ)
            elif (request := _read(key.fileobj, children, waiting)) is not None:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for source in (waiting, listener, *children.values(), key.fileobj):
                    source.close()  # type: ignore[union-attr]
                return request


def _read(client: Any, children: dict[int, socket.socket], waiting: selectors.BaseSelector) -> Mapping[str, Any] | None:
    """Take a client's request, and fork; in the forked process, what it is to do. A client that left wants no more."""
    message, descriptors, _, _ = socket.recv_fds(client, _LARGEST_REQUEST, 1)
    if not message:
        waiting.unregister(client)
        client.close()
        for child, owner in children.items():
            if owner is client:
                os.kill(child, signal.SIGKILL)
        return None

    child = os.fork()
    if child == 0:
        return {**json.loads(message), "output": descriptors[0]}
    os.close(descriptors[0])
    children[child] = client
    client.send(str(child).encode())
    return None


def _tell_of_ends(children: dict[int, socket.socket], waiting: selectors.BaseSelector) -> None:
    for child in list(children):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            client = children.pop(child)
            with suppress(OSError):  # it has left
                waiting.unregister(client)
                client.send(str(os.waitstatus_to_exitcode(status)).encode())
            client.close()


def _become(request: Mapping[str, Any]) -> Callable[[], None]:
    """Make this process what a new one with the request's environment would be; returns what it is to run."""
    os.dup2(request["output"], 1)
    os.dup2(request["output"], 2)
    os.close(request["output"])
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    random.seed()
    tempfile.tempdir = None
    sys.executable = request.get("python") or sys.executable

    command: list[str] = request["command"]
    if Path(command[0]).name == "gatehouse":
        sys.argv = command
        return importlib.import_module("pipeline.cli.app").main  # type: ignore[no-any-return]
    sys.argv = command[2:]
    return lambda: _run_module(command[2])


def _run_module(name: str) -> None:
    """Run a module as `python -m` does. Libraries that it would not have loaded have nothing to say at its end."""
    sys.modules.pop(name, None)
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))


def _main() -> None:
    kind, descriptor = sys.argv[1:]
    for name in _LOADED[kind]:
        importlib.import_module(name)
    if kind == _COMMANDS:
        definitions = importlib.import_module("pipeline.definitions")
        definitions.build_definitions("smoke").resolve_implicit_global_asset_job_def()
    gc.collect()
    gc.freeze()
    request = _serve(socket.socket(fileno=int(descriptor)))
    sys.exit(_become(request)())


if __name__ == "__main__":
    _main()
