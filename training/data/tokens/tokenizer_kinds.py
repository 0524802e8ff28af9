"""Which tokenizers are read: byte-level BPE, SentencePiece BPE and Unigram, of parts that are known.

A `tokenizer.json` is data, and no code of it is run. But its regular expressions and tables can take any time and any
memory on the wrong text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

# The largest vocabularies in use have 262,000 tokens, in a file of 33 MB.
MAX_TOKENS = 1_000_000
MAX_BYTES = 64 * 2**20
_MAX_PATTERN = 4_000  # characters
MODELS = ("BPE", "Unigram")
_PARTS = {
    "normalizer": (
        "Sequence", "Prepend", "Replace", "Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip",
        "StripAccents", "Nmt", "ByteLevel",
    ),
    "pre_tokenizer": (
        "Sequence", "ByteLevel", "Split", "Metaspace", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit",
        "UnicodeScripts",
    ),
    "decoder": ("Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"),
    "post_processor": ("Sequence", "TemplateProcessing", "ByteLevel"),
}  # fmt: skip
_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")


def problem_of(content: Any) -> str:
    """Why the content of a `tokenizer.json` is not read; empty if it is."""
    model = content["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "none")
    if kind not in MODELS:
        return f"it is a {kind}; byte-level BPE, SentencePiece BPE and Unigram are read"

    tokens = len(model["vocab"]) + len(content.get("added_tokens") or [])
    if tokens > MAX_TOKENS:
        return f"it has {tokens:,} tokens, and {MAX_TOKENS:,} are the most"

    for name, known in _PARTS.items():
        for part in _parts(content.get(name)):
            if part.get("type") not in known:
                return f"it has the {name} {str(part.get('type'))[:40]}, and {', '.join(known)} are known"
            pattern = part.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if regex is not None and (len(regex) > _MAX_PATTERN or repeats_a_repetition(regex)):
                return f"it cuts words by another rule: {json.dumps(regex)[:200]} can take any time on the wrong text"
    return ""


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A part and those that it is made of."""
    if not isinstance(part, dict):
        return
    yield part
    for name in _LISTS:
        for child in part.get(name) or ():
            yield from _parts(child)


def repeats_a_repetition(pattern: str) -> bool:
    """Whether a regular expression repeats a group that repeats something, as `(a+)+` does.

    Such an expression tries a number of ways that doubles with every letter. None in use has one.
    """
    # For each open group, whether it holds a repetition without an upper bound.
    groups = [False]
    position = 0
    while position < len(pattern):
        letter = pattern[position]
        if letter == "\\":
            position += 2
            continue
        if letter == "[":
            position = _after_class(pattern, position)
            continue
        if letter == "(":
            groups.append(False)
        elif letter == ")" and len(groups) > 1:
            repeats = groups.pop()
            if repeats and _is_unbounded(pattern, position + 1):
                return True
            groups[-1] = groups[-1] or repeats
        elif _is_unbounded(pattern, position) and pattern[position - 1 : position] != "(":
            groups[-1] = True
        position += 1
    return False


def _after_class(pattern: str, position: int) -> int:
    """The place after a class of characters, which may hold classes."""
    depth = 0
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 2
            continue
        depth += {"[": 1, "]": -1}.get(pattern[position], 0)
        position += 1
        if not depth:
            return position
    return position


def _is_unbounded(pattern: str, position: int) -> bool:
    """Whether a `*`, a `+` or a `{n,}` stands at a place."""
    rest = pattern[position : position + 12]
    if rest[:1] == "{":
        return "," in rest and rest[rest.index(",") + 1 : rest.index(",") + 2] == "}"
    return rest[:1] in ("*", "+")
