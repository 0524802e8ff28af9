"""Output on terminals and in files that are not UTF-8: what they cannot show is replaced."""

from __future__ import annotations

import codecs
import io
import os
import sys

_HANDLER = "gatehouse.legible"
_SUBSTITUTES = {
    "✓": "ok",
    "✗": "x",
    "…": "...",
    "·": "-",
    "–": "-",
    "—": "-",
    "─": "-",
    "━": "-",
    "╸": "-",
    "╺": "-",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "±": "+-",
    "×": "x",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
}


def make_legible() -> None:
    """Let standard output and standard error replace what their encoding lacks."""
    codecs.register_error(_HANDLER, _substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def legible_environment() -> dict[str, str]:
    """The variable by which a Python process that writes to this terminal escapes what the terminal lacks."""
    encoding = os.environ.get("PYTHONIOENCODING", "").split(":")[0]
    return {"PYTHONIOENCODING": f"{encoding}:backslashreplace"}


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that cannot be encoded: a substitute, or an escape such as `\\xfc`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error

    unencodable = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(character) or ascii(character)[1:-1] for character in unencodable), error.end
