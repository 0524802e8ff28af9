"""Personal data and secrets in texts, replaced by words that stand for them."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable

REPLACEMENTS = {"email": "<email>", "ip": "<ip>", "phone": "<phone>", "key": "<key>"}
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PATTERNS = {
    "email": re.compile(rf"(?<![\w.+-])[\w.+-]{{1,64}}@(?:{_LABEL}\.){{1,8}}[A-Za-z]{{2,24}}(?![\w-])"),
    "ip": re.compile(
        r"(?<![\w.:-])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4})(?![\w:-]|\.\w)"
    ),
    "phone": re.compile(
        r"(?<![\w.+/-])(?:\+\d{1,3}[ .\-/]?(?:\(\d{1,4}\)[ .\-/]?)?(?:\d[ .\-/]?){6,12}\d"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4})(?![\w/-]|\.\d)"
    ),
    "key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{1,8000}?-----END [A-Z ]*PRIVATE KEY-----"
        r"|(?<![A-Za-z0-9_-])(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{60,255}|glpat-[\w-]{20}"
        r"|sk-(?:proj-|ant-[a-z0-9]+-)?[A-Za-z0-9_-]{32,200}|xox[abprs]-[A-Za-z0-9-]{10,200}|AIza[\w-]{35}|hf_[A-Za-z]{34}"
        r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000})(?![A-Za-z0-9_-])"
    ),
}
_HINTS = {"email": "@", "phone": "", "ip": "", "key": ""}
_VERSION = re.compile(r"(?:version|release|v|>=|<=|==|~=|rc|revision)[ \t]*$", re.IGNORECASE)


def scrub(text: str, kinds: Iterable[str]) -> tuple[str, Counter[str]]:
    """Replace personal data of some kinds by their words.

    Addresses that lead nowhere outside (private, loopback, for documentation) stay, and so do numbers of versions.

    Args:
        text: Any text.
        kinds: Of `REPLACEMENTS`.

    Returns:
        The text, and how many were replaced by kind.
    """
    counts: Counter[str] = Counter()
    for kind in REPLACEMENTS:
        if kind not in kinds or _HINTS[kind] not in text:
            continue

        def replaced(match: re.Match[str], kind: str = kind) -> str:
            if kind == "ip" and not _is_public(match):
                return match[0]
            counts[kind] += 1
            return REPLACEMENTS[kind]

        text = _PATTERNS[kind].sub(replaced, text)
    return text, counts


def _is_public(match: re.Match[str]) -> bool:
    if _VERSION.search(match.string, max(0, match.start() - 16), match.start()):
        return False
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False
