"""The text of HTML pages, by trafilatura in a process of its own that bounds what a page may take.

Reference: Barbaresi, "Trafilatura: A Web Scraping Library and Command-Line Tool for Text Discovery and Extraction",
2021.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import NamedTuple

from training.data.sources import html_worker  # imported, so that a fingerprint covers it
from training.data.worker_process import end_process
from training.errors import GatehouseError

SECONDS = 20  # of processor time
MEMORY = 2**30
LARGEST = 20_000_000  # characters; the largest page that trafilatura is made for
_WALL_SECONDS = 600.0  # also where the machine is busy
NOT_EXTRACTED = "HTML with text that was not extracted"
WITHOUT_TEXT = "HTML without text"
TOO_DEEP = "HTML nested too deeply"
TOO_LARGE = f"HTML over {LARGEST // 10**6} MB"
TOO_SLOW = f"HTML over {SECONDS} s"
TOO_MUCH_MEMORY = f"HTML over {MEMORY >> 30} GB of memory"
FAILED = "HTML that the extractor fails on"
_REASONS = {
    html_worker.EMPTY: WITHOUT_TEXT,
    html_worker.LOST: NOT_EXTRACTED,
    html_worker.DEEP: TOO_DEEP,
    html_worker.MEMORY: TOO_MUCH_MEMORY,
    html_worker.FAILED: FAILED,
}
_WORKER = Path(html_worker.__file__)
_LENGTH = struct.Struct("<Q")
_READ = 2**16


class Page(NamedTuple):
    """What became of a page.

    Attributes:
        text: Empty where there is a reason.
        reason: Why it is no document; empty for one.
    """

    text: str
    reason: str


class HtmlPages:
    """Extracts the text of one page after the other. The process lives until nobody holds this object.

    Args:
        seconds: Of processor time that a page may take.
        memory: Bytes that a page may take.
    """

    def __init__(self, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        self._seconds, self._memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None

    def extract(self, page: str) -> Page:
        """The text of a page. Menus, footers and comments of readers are left out; tables are kept.

        Args:
            page: The whole page, or a part of one.

        Raises:
            GatehouseError: No process can read pages here.
        """
        if len(page) > LARGEST:
            return Page("", TOO_LARGE)
        is_fresh = self._process is None
        answer = self._asked(page.encode())
        if not is_fresh and answer.reason in (TOO_MUCH_MEMORY, FAILED):  # the pages before may have had a part in it
            self._end()
            answer = self._asked(page.encode())
        if answer.reason == TOO_MUCH_MEMORY:
            self._end()  # its peak would be held against the next page
        return answer

    def _asked(self, data: bytes) -> Page:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(_LENGTH.pack(len(data)) + data)
            process.stdin.flush()
            line = _line(process)
        except BrokenPipeError:
            line = b""
        if not line:
            return Page("", self._end())
        kind, text = json.loads(line)
        return Page(text, "") if kind == html_worker.TEXT else Page("", _REASONS[kind])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-I", str(_WORKER), str(self._seconds), str(self._memory)]
            environment = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "LC_ALL": "C.UTF-8"}
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            except OSError as error:  # else it would pass for an error of the file that is being read
                raise GatehouseError(f"no process can be started to read HTML: {error}") from error
            weakref.finalize(self, end_process, self._process)
            kind, why = json.loads(_line(self._process) or '["broken", "it ended at once"]')
            if kind != html_worker.READY:
                raise GatehouseError(
                    f"the process that reads HTML does not start ({why}); install what constraints.txt lists"
                )
        return self._process

    def _end(self) -> str:
        """End the process; the reason for which it gave no answer."""
        process, self._process = self._process, None
        if process is None:
            return ""
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        code = process.returncode
        end_process(process)
        if code is None or code == -signal.SIGXCPU:
            return TOO_SLOW
        return TOO_MUCH_MEMORY if code == -signal.SIGKILL else FAILED


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of a process; empty where it has ended or takes too long."""
    assert process.stdout is not None
    deadline, chunks = time.monotonic() + _WALL_SECONDS, [b""]
    while not chunks[-1].endswith(b"\n"):
        waiting = deadline - time.monotonic()
        if waiting <= 0 or not select.select([process.stdout], [], [], waiting)[0]:
            return b""
        data = os.read(process.stdout.fileno(), _READ)
        if not data:
            return b""
        chunks.append(data)
    return b"".join(chunks)
