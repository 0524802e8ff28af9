"""Extracts the text of HTML pages in a process of its own: a page comes in, and a line of JSON goes out.

`html_pages` starts this file by its path, so it imports nothing of Gatehouse. It fetches nothing.
"""

from __future__ import annotations

import ctypes
import json
import logging
import re
import resource
import signal
import struct
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LENGTH = struct.Struct("<Q")
_IS_WHOLE = re.compile(r"<(!doctype|html|body)\b", re.IGNORECASE)
_SPARE_MEMORY = 512 * 2**20
_UNSEEN = ("script", "style", "template", "noscript", "title", "head")
READY, BROKEN = "ready", "broken"
TEXT, EMPTY, LOST, DEEP, MEMORY, FAILED = "text", "empty", "lost", "deep", "memory", "failed"


class _VisibleText(HTMLParser):
    """Whether a page shows any text."""

    def __init__(self) -> None:
        super().__init__()
        self.is_there = False
        self._unseen = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """What a reader does not see begins, or ends because another element begins."""
        if self._unseen in ("", "head"):
            self._unseen = tag if tag in _UNSEEN else "" if tag == "body" else self._unseen

    def handle_endtag(self, tag: str) -> None:
        """What a reader does not see ends."""
        if tag == self._unseen:
            self._unseen = ""

    def handle_data(self, data: str) -> None:
        """Text, seen or not."""
        self.is_there = self.is_there or (not self._unseen and not data.isspace())


def _extracted(page: str) -> tuple[str, str]:
    """What became of a page, and its text."""
    from lxml import etree
    from trafilatura import extract, load_html
    from trafilatura.utils import HTML_PARSER

    # A part of a page alone is not taken for HTML.
    tree = load_html(page if _IS_WHOLE.search(page, 0, 4096) else f"<html><body>{page}</body></html>")
    # libxml2 stops at its limit, and what comes after it would be missing without a word.
    if any(error.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for error in HTML_PARSER.error_log):
        return DEEP, ""

    text = None if tree is None else extract(tree, include_comments=False)
    if text and text.strip():
        return TEXT, text
    visible = _VisibleText()
    visible.feed(page)
    visible.close()
    return (LOST if visible.is_there else EMPTY), ""


def _answer(page: str, most: int) -> tuple[str, str]:
    try:
        kind, text = _extracted(page)
    except MemoryError:
        return MEMORY, ""
    except Exception as error:  # a page can lead to any error of the library; it goes to whoever asked
        return FAILED, f"{type(error).__name__}: {error}"[:300]
    # The library goes on after some errors, so that a lack of memory could cost a part of the text.
    return (MEMORY, "") if _status("VmHWM") > most else (kind, text)


def _status(name: str) -> int:
    """Bytes that this process holds (`VmData`), or the most that it held in memory (`VmHWM`); 0 outside Linux."""
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def _bound_memory(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = _status("VmData") + memory + _SPARE_MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _allow_seconds(seconds: int) -> None:
    """Let the kernel end this process after some more seconds of processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, resource.RLIM_INFINITY))


def _next_page(stream: IO[bytes]) -> str | None:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    return stream.read(_LENGTH.unpack(header)[0]).decode()


def main(arguments: list[str]) -> int:
    """Say that pages can be read, and answer until the input ends.

    Args:
        arguments: Seconds of processor time and bytes of memory that a page may take.
    """
    seconds, memory = map(int, arguments)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.disable(logging.CRITICAL)  # its messages quote pages
    try:
        _extracted("<html><body><p>What is loaded on first use is loaded now.</p></body></html>")
        _bound_memory(memory)
        most = _status("VmHWM") + memory
    except Exception as error:  # a library that is missing must not pass for a fault of every page
        print(json.dumps([BROKEN, f"{type(error).__name__}: {error}"[:300]]), flush=True)
        return 1
    print(json.dumps([READY, ""]), flush=True)
    while (page := _next_page(sys.stdin.buffer)) is not None:
        _allow_seconds(seconds)
        print(json.dumps(_answer(page, most)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
