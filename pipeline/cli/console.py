"""Live progress of a run on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.addresses import is_served
from training.specs.job import EVALUATION_SUFFIX

_LINE_SECONDS = 10.0
_MARKS = {
    "built": "[green]✓[/] built",
    "reused": "[cyan]=[/] reused",
    "promoted": "[green]✓[/] gates passed",
    "refused": "[red]✗[/] refused by its gates",
}


def make_console() -> Console:
    """A console that does not squeeze tables to 80 columns when its output goes to a file."""
    console = Console()
    # Rich knows no width for a file, and takes 80.
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=140)


class RunDisplay:
    """Shows one bar per job with its phase, count, note and ETA, and a line for every state an asset reaches.

    Errors are not shown here: the run that they end reports them, each once.

    Attributes:
        states: Asset to the last of `built` and `reused`.
        versions: Asset to the version that was built or reused.
        seconds: Asset to the wall-clock time of its job and its evaluation.
        refused: Assets that their gates refused.
    """

    def __init__(self, console: Console) -> None:
        self.states: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.refused: list[str] = []
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._job = ""
        self._phase = ""
        self._phase_began = 0.0
        self._last = time.monotonic()
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, asset: str, events: list[dict[str, Any]]) -> None:
        """Take the newest events of an asset's job."""
        name = asset.removesuffix(EVALUATION_SUFFIX)

        # One asset is worked at after another, so the time since the last event belongs to this one.
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

        for event in events:
            if event["kind"] == "state":
                self._state(name, event["state"], event["version"])
            elif event["kind"] == "phase":
                self._begin(asset, event["name"])
            elif event["kind"] == "progress":
                self._advance(event)
            elif event["kind"] == "link" and is_served(event["url"]):
                self._console.print(f"  {asset}: {event['name']} {event['url']}", markup=False, soft_wrap=True)
            elif event["kind"] == "log" and event["level"] == "warning":
                self._console.print(f"  {asset}: {event['message']}", markup=False)

    def _state(self, asset: str, state: str, version: str) -> None:
        if state in ("built", "reused"):
            self.states[asset], self.versions[asset] = state, version
        elif state == "refused":
            self.refused.append(asset)

        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._console.print(f"{asset:<17} {_MARKS[state]}", highlight=False)

    def _begin(self, asset: str, phase: str) -> None:
        self._job, self._phase, self._phase_began = asset, phase, time.monotonic()
        if self._console.is_terminal:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(f"{asset}  {phase}", total=None, count="", note="")

    def _advance(self, event: dict[str, Any]) -> None:
        done, total = event["done"], event["total"]
        count = f"{done:,.10g}{'' if total is None else f'/{total:,.10g}'} {event['unit']}"
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, count=count, note=event["note"])
        elif not self._console.is_terminal and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            elapsed = self._last_line - self._phase_began
            eta = f"  ETA {elapsed * (total - done) / done:.0f} s" if done and total is not None else ""
            self._console.print(
                f"  {self._job} {self._phase}: {count}  {event['note']}{eta}", markup=False, highlight=False
            )
