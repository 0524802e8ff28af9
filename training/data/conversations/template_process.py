"""Starts and ends the process that renders a foreign chat template, and bounds what it may take."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.data.conversations import template_worker  # imported, so that a fingerprint covers it
from training.data.worker_process import end_process
from training.errors import InputRefused

_WORKER = Path(template_worker.__file__)
_READ = 2**16


class TemplateRefused(InputRefused):
    """A chat template cannot be used: it does not parse, does not end, or loses what it is given."""


@dataclass(frozen=True)
class Limits:
    """What rendering one conversation may take.

    Attributes:
        seconds: Of processor time.
        wall_seconds: Between two answers, also where the machine is busy.
        memory: Bytes of the process.
        longest: Characters of a rendering, and 16 more for each character of the conversation.
    """

    seconds: int = 10
    wall_seconds: float = 120.0
    memory: int = 2**30
    longest: int = 2**20


USUAL = Limits()


@dataclass(frozen=True)
class Request:
    """One conversation to render.

    Attributes:
        messages: As the template sees them.
        tools: Definitions of tools.
        prompt: End with the opening of the assistant's turn.
        where: Names the row in messages.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] = ()
    prompt: bool = False
    where: str = ""

    def line(self) -> bytes:
        """The request as the process reads it."""
        value = {"messages": self.messages, "tools": list(self.tools), "prompt": self.prompt}
        size = len(json.dumps(value))
        return json.dumps(value | {"size": size}).encode() + b"\n"


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation.

    Attributes:
        text: Without the marks of `{% generation %}`.
        marked: The first character of each marked part, and the one after its last.
        error: Why there is no text; empty otherwise.
    """

    text: str
    marked: tuple[tuple[int, int], ...] = ()
    error: str = ""


@dataclass
class TemplateProcess:
    """Renders conversations by one template. It lives until it is closed or nobody holds it.

    Attributes:
        template: Jinja.
        name: Names the template in messages.
        variables: Names and texts of the special tokens, such as `bos_token`.
        date: What the template takes for today.
    """

    template: str
    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    date: datetime.date = datetime.date(2026, 1, 1)
    limits: Limits = USUAL
    borders: tuple[str, ...] = ()
    has_marks: bool = False

    def __post_init__(self) -> None:
        self._marks = tuple(f"x{secrets.token_hex(12)}{side}z" for side in "oc")
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._start()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            end_process(self._process)
            self._process = None

    def render(self, requests: Sequence[Request]) -> list[Rendering]:
        """Render conversations in the order of the requests.

        Raises:
            TemplateRefused: A rendering took more time or memory than it may; the message names the row.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        feeder = threading.Thread(target=_feed, args=(self._process, [request.line() for request in requests]))
        feeder.daemon = True
        feeder.start()
        results = [self._rendering(self._answer(request.where)) for request in requests]
        feeder.join()
        return results

    def _start(self) -> None:
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "LC_ALL": "C.UTF-8"},
        )
        self._finalizer = weakref.finalize(self, end_process, self._process)

        setting = {
            "template": self.template,
            "variables": dict(self.variables),
            "date": self.date.isoformat(),
            "marks": self._marks,
            "memory": self.limits.memory,
            "seconds": self.limits.seconds,
            "longest": self.limits.longest,
        }
        feeder = threading.Thread(
            target=_feed, args=(self._process, [json.dumps(setting).encode() + b"\n"]), daemon=True
        )
        feeder.start()
        answer = self._answer("")
        feeder.join()
        if "error" in answer:
            self.close()
            raise TemplateRefused(f"{self.name}: this chat template cannot be used: {answer['error']}")
        self.borders, self.has_marks = tuple(answer["borders"]), bool(answer["has_marks"])

    def _rendering(self, answer: Mapping[str, Any]) -> Rendering:
        if "error" in answer:
            return Rendering("", error=str(answer["error"]))
        opening, closing = self._marks
        pieces: list[str] = []
        marked: list[tuple[int, int]] = []
        length, start = 0, -1
        for piece in _split(str(answer["text"]), opening, closing):
            if piece == opening:
                start = length
            elif piece == closing:
                if start >= 0:
                    marked.append((start, length))
                start = -1
            else:
                pieces.append(piece)
                length += len(piece)
        return Rendering("".join(pieces), tuple(marked))

    def _answer(self, where: str) -> dict[str, Any]:
        """The next line of the process."""
        assert self._process is not None and self._process.stdout is not None
        deadline, chunks = time.monotonic() + self.limits.wall_seconds, [self._buffer]
        while b"\n" not in chunks[-1]:
            waiting = deadline - time.monotonic()
            if waiting <= 0 or not select.select([self._process.stdout], [], [], waiting)[0]:
                raise self._stopped(where, f"more than {self.limits.wall_seconds:g} seconds")
            data = os.read(self._process.stdout.fileno(), _READ)
            if not data:
                raise self._stopped(where, "")
            chunks.append(data)
        line, _, self._buffer = b"".join(chunks).partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stopped(self, where: str, took: str) -> TemplateRefused:
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if took else 5)
        code = process.returncode
        self.close()
        if not took and code == -signal.SIGXCPU:
            took = f"more than {self.limits.seconds} seconds of processor time"
        elif not took:
            took = f"more memory than it may use, or it ended by itself (exit code {code})"
        row = f"{where}: " if where else ""
        return TemplateRefused(f"{row}the chat template {self.name} takes {took}; choose another chat_template")


def _feed(process: subprocess.Popen[bytes], lines: Sequence[bytes]) -> None:
    assert process.stdin is not None
    try:
        for line in lines:
            process.stdin.write(line)
        process.stdin.flush()
    except (OSError, ValueError):
        pass  # the process is gone, which its reader says better


def _split(text: str, opening: str, closing: str) -> Iterator[str]:
    """The text cut before and after each mark."""
    place = 0
    while place < len(text):
        next_marks = [at for at in (text.find(opening, place), text.find(closing, place)) if at >= 0]
        if not next_marks:
            yield text[place:]
            return
        at = min(next_marks)
        if at > place:
            yield text[place:at]
        yield text[at : at + len(opening)]
        place = at + len(opening)
