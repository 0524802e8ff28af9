"""Programs that a model wrote, run where they reach nothing: in CPython as a WebAssembly component without imports.

The component can call nothing of the machine. It has no files, no network, no processes, no environment and no clock,
and a program that asks for one of them fails. Every program gets an instance of its own. Its limits are instructions
and bytes rather than seconds, so that a verdict does not depend on how busy the machine is. Only the hashes of strings,
and with them the order of sets, are drawn anew whenever a sandbox is built.

The interpreter is that of componentize-py, the sandbox wasmtime; both are projects of the Bytecode Alliance.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# The slowest reference solution of HumanEval takes 3.8e9; at their usual speed this is some three seconds.
MOST_INSTRUCTIONS = 20_000_000_000
MOST_BYTES = 512 * 2**20
_SHOWN = 300
_BUILD_MINUTES = 10
_INTERFACE = """
package gatehouse:sandbox;
world sandbox {
  export fault: func(program: string) -> option<string>;
}
"""
# The guest is a text and not a module of the package, so that the evaluation's fingerprint covers it. It imports
# everything that a program may import when the component is built, because there are no files afterwards.
_GUEST = """
import abc, array, base64, bisect, calendar, cmath, collections, collections.abc, contextlib, copy, dataclasses
import datetime, decimal, enum, fractions, functools, hashlib, heapq, inspect, io, itertools, json, math, numbers
import operator, os, queue, random, re, statistics, string, struct, sys, textwrap, time, traceback, types, typing
import unicodedata, uuid, warnings

import wit_world


class _Nothing(io.TextIOBase):
    def write(self, text):
        return len(text)

    def read(self, size=-1):
        return ""

    def readline(self, size=-1):
        return ""


class WitWorld(wit_world.WitWorld):
    def fault(self, program):
        sys.stdin = sys.stdout = sys.stderr = _Nothing()
        try:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return None


def _refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir"):
        raise PermissionError("the sandbox has no files")


sys.addaudithook(_refuse)
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "PathFinder"]
random.seed(0)
"""


class Sandbox:
    """Runs programs. Building a sandbox takes some ten seconds.

    Raises:
        RuntimeError: The component could not be built.
    """

    def __init__(self) -> None:
        from wasmtime import Config, Engine
        from wasmtime.component import Component, Linker

        config = Config()
        config.consume_fuel = True
        config.cranelift_opt_level = "none"  # programs run for milliseconds, and compiling takes seconds
        self._engine = Engine(config)
        self._component = Component(self._engine, _build())
        self._linker = Linker(self._engine)  # empty: a component with an import would not start
        self.fault = functools.cache(self._fault)

    def _fault(self, program: str) -> str | None:
        """Run a program.

        Returns:
            Why it did not reach its end: its exception, or the limit that it hit. None if it did.
        """
        from wasmtime import Store, WasmtimeError

        try:
            program.encode()
        except UnicodeEncodeError:
            return "SyntaxError: the program is no valid Unicode"

        store = Store(self._engine)
        store.set_fuel(MOST_INSTRUCTIONS)
        store.set_limits(memory_size=MOST_BYTES)
        instance = self._linker.instantiate(store, self._component)
        run = instance.get_func(store, "fault")
        assert run is not None
        try:
            exception = run(store, program)
        except WasmtimeError as error:
            return _limit_hit(str(error))
        return None if exception is None else str(exception)[:_SHOWN]


def _limit_hit(trap: str) -> str:
    """What a trap of WebAssembly means for the program."""
    if "all fuel consumed" in trap:
        return f"it did not end within {MOST_INSTRUCTIONS:,} instructions"
    if "call stack exhausted" in trap:
        return "it ran out of stack"
    return "it asked for what the sandbox does not have, such as a file or the time, or it ran out of memory"


@functools.cache
def sandbox() -> Sandbox:
    """The sandbox of this process."""
    return Sandbox()


class CodeEval:
    """Replaces the metric `code_eval` of the package `evaluate`, which runs programs on the machine itself."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> tuple[dict[str, float], dict[int, object]]:
        """Run each problem's program together with its tests.

        Args:
            references: Tests of each problem.
            predictions: The one program for each problem.
            k: Only 1: Gatehouse decodes greedily, so there is one program.

        Returns:
            `pass@1`, the share of programs that pass, and nothing else.

        Raises:
            ValueError: Several programs for a problem, or another `k`.
        """
        if list(k) != [1] or any(len(programs) != 1 for programs in predictions):
            raise ValueError("it wants several programs for a problem, and Gatehouse decodes greedily only; use pass@1")
        faults = [
            sandbox().fault(f"{program}\n{tests}") for (program,), tests in zip(predictions, references, strict=True)
        ]
        return {"pass@1": statistics.fmean(fault is None for fault in faults)}, {}


def _build() -> bytes:
    """The component, as WebAssembly."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wit").mkdir()
        (folder / "wit" / "sandbox.wit").write_text(_INTERFACE)
        (folder / "app").mkdir()
        (folder / "app" / "guest.py").write_text(_GUEST)
        out = folder / "sandbox.wasm"

        # Without WASI's stubs the component would ask the machine for files, clocks and the network.
        componentize = [sys.executable, "-c", "import sys; from componentize_py import script; sys.exit(script())"]
        interface: list[str | Path] = ["-q", "-d", folder / "wit", "-w", "sandbox"]
        guest: list[str | Path] = ["componentize", "--stub-wasi", "-p", folder / "app", "guest", "-o", out]
        done = subprocess.run(
            [*componentize, *interface, *guest],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60 * _BUILD_MINUTES,
            check=False,
        )
        if done.returncode or not out.exists():
            raise RuntimeError(f"the sandbox for programs could not be built: {done.stderr.strip()[-500:]}")
        return out.read_bytes()
