"""Words for people: durations, sizes and versions in short, and the word that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def short(version: str) -> str:
    """The last part of a version's name, which no other version has."""
    return version.rpartition("-")[2]


def age(seconds: float) -> str:
    """A duration for people: 42s, 17m, 5h, 3d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(count: float) -> str:
    """Bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean ...?` with the closest candidate, or the only one that begins so; empty where none is close."""
    candidates = list(candidates)
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)

    # `sft` is no near miss of `sft_model`, and yet nobody means anything else by it.
    if not close and word:
        close = [name for name in candidates if name.startswith(word)]
    return f"; did you mean {close[0]}?" if len(close) == 1 else ""
