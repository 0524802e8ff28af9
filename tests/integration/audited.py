"""Runs a `main` of the product in a process of its own, which tells what it did.

Code of a folder that was run, pickles, processes, files that were written, addresses on the network: Python
tells an audit hook (PEP 578) of each. What a C library does unseen shows as a file that should not be there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.integration.training_jobs import INPUTS
from tests.patience import Patience

_SERVER = multiprocessing.get_context("forkserver")
# There is one server for all tests of a process: it starts with what they all need.
_LOADED = [*(f"training.stages.{stage}" for stage in (*INPUTS, "raw_corpus", "evaluate_model")), "training.chat"]
# Folders that libraries write to for reasons of their own.
_SCRATCH = ("/dev/", "/proc/")


@dataclass(frozen=True)
class Told:
    """What a process did.

    Attributes:
        code: Its exit code; negative for a signal.
        output: What it printed.
        events: Kind and detail of what was of interest, in order.
        peak: The most memory it held, in bytes.
        seconds: How long it ran, in seconds of an idle machine.
    """

    code: int
    output: str
    events: tuple[tuple[str, str], ...]
    peak: int
    seconds: float

    def of(self, *kinds: str) -> list[str]:
        """Details of events of some kinds."""
        return [detail for kind, detail in self.events if kind in kinds]


def server() -> ForkServerContext:
    """Starts processes that have loaded what the product's jobs load."""
    _SERVER.set_forkserver_preload(_LOADED)
    return _SERVER


def run(
    main: Callable[[list[str]], int],
    arguments: Sequence[str],
    folder: Path,
    watched: Path,
    writes: Sequence[Path] = (),
    timeout: float = 120,
) -> Told:
    """Run `main` to its end.

    Args:
        main: A function of a module, which the process imports.
        arguments: Its argument.
        folder: Of this process alone: its output and its report.
        watched: What is in here must not be run; every file in it that is opened is reported.
        writes: Where it may write, beside `folder`.
        timeout: In seconds of an idle machine; a process that takes longer is killed.
    """
    folder.mkdir(parents=True)
    process = server().Process(
        target=_audited,
        args=(main, list(arguments), str(folder), str(watched), [str(path) for path in (folder, *writes)]),
    )
    process.start()
    patience = Patience(timeout)
    while process.exitcode is None and not patience.is_over():
        process.join(0.1)
    if process.exitcode is None:
        process.kill()
        process.join()
    report = folder / "report.jsonl"
    rows: list[Any] = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    assert process.exitcode is not None
    return Told(
        process.exitcode,
        (folder / "output.txt").read_text(errors="replace"),
        tuple((kind, detail) for kind, detail in rows if kind != "peak"),
        max((int(detail) for kind, detail in rows if kind == "peak"), default=0),
        patience.spent,
    )


def _audited(
    main: Callable[[list[str]], int], arguments: list[str], folder: str, watched: str, writes: list[str]
) -> None:
    output = os.open(Path(folder) / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
        }
    sys.dont_write_bytecode = True
    tempfile.tempdir = folder
    report = os.open(Path(folder) / "report.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(kind: str, detail: object) -> None:
        os.write(report, (json.dumps([kind, str(detail)]) + "\n").encode())

    _listen(tell, watched, writes)
    try:
        code = main(arguments)
    finally:
        tell("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    sys.stdout.flush()
    os._exit(code)


def _listen(tell: Callable[[str, object], None], watched: str, writes: list[str]) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, str | bytes | os.PathLike):
                name = os.path.abspath(os.fsdecode(path))
                if name.startswith(watched):
                    tell("open", name)
                changes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if changes and not name.startswith((*writes, *_SCRATCH)):
                    tell("write", name)
        elif event in ("exec", "compile"):
            code = arguments[0] if event == "exec" else arguments[1]
            name = os.fsdecode(getattr(code, "co_filename", code) or "")
            if name.startswith(watched):
                tell("run", name)
        elif event == "import":
            if str(arguments[1] or "").startswith(watched):
                tell("run", arguments[1])
        elif event == "pickle.find_class":
            tell("pickle", f"{arguments[0]}.{arguments[1]}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            tell("process", arguments[0])
        elif event == "socket.connect":
            address = arguments[1]
            if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1")):
                tell("network", address)
        elif event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
            tell("network", arguments[0])

    sys.addaudithook(hook)
