"""The one form in which texts are kept and compared."""

from __future__ import annotations

import re
import unicodedata

_LINE_END = re.compile(r"\r\n?")


def normalised(text: str) -> str:
    """A text with `\\n` as its line ends and with composed letters (Unicode's NFC).

    U+FEFF is removed: it marks byte order and prints nothing.
    """
    text = _LINE_END.sub("\n", text).replace("\ufeff", "")
    return text if text.isascii() else unicodedata.normalize("NFC", text)
