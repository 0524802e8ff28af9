"""The encoding that a file itself declares: a Python file in its first two lines, a page of HTML in its head."""

from __future__ import annotations

import codecs
import io
import re
import tokenize

# Python takes these for encodings, although they are not made for whole files.
_ESCAPES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined")
_HEAD = 1024  # bytes in which a page names its encoding (WHATWG, HTML, 4.2.5.4)
_CHARSET = re.compile(rb"""<meta\b[^>]*?charset\s*=\s*["']?\s*([\w:.+-]+)""", re.IGNORECASE)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# Every browser reads what a page calls by these names as windows-1252 (WHATWG, Encoding, 4.2).
_WINDOWS = ("ascii", "iso8859-1")


def python_encoding(data: bytes) -> str:
    """The encoding that a Python file declares (PEP 263); UTF-8 if it declares none, or none that files are in."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except (SyntaxError, LookupError, UnicodeError):
        return "utf-8-sig"
    return encoding if _is_readable(encoding) and encoding != "utf-8" else "utf-8-sig"


def page_encoding(data: bytes) -> str:
    """The encoding of a page: that of its byte order mark, else the one that it names, else UTF-8."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding

    named = _CHARSET.search(data[:_HEAD])
    if named is None or not _is_readable(named[1].decode()):
        return "utf-8"
    encoding = codecs.lookup(named[1].decode()).name
    return "cp1252" if encoding in _WINDOWS else encoding


def _is_readable(encoding: str) -> bool:
    """Whether a file can be in an encoding and name it: in UTF-16 nobody could have read the name."""
    try:
        name = codecs.lookup(encoding).name.replace("_", "-")
        return b"coding".decode(encoding) == "coding" and name not in _ESCAPES
    except (LookupError, UnicodeError):
        return False
