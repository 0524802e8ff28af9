"""The rules of `corpus.rules`: whether a document is prose that is worth learning from.

Words are what white space divides, so that the rules need no model of a language. Published code cuts punctuation off
first; at a threshold a document can fall on the other side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from training.data.text.sentences import SENTENCE_ENDS
from training.specs.cleaning import C4, FineWeb, Gopher, Repetition, Rules

_ENDS = (*SENTENCE_ENDS.split(), '"', "'", "\u201d", "\u2019", "\u300d")
_BULLETS = ("-", "\u2022", "*", "\u25cf")
_ELLIPSES = ("...", "\u2026")
_PARAGRAPH, _LINE = re.compile(r"\n{2,}"), re.compile(r"\n+")
_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f\u0964\u061f]+")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_SHORT_LINE = 30


def broken_rule(text: str, rules: Rules) -> tuple[str, str]:
    """The first rule that a text breaks, by its key in `corpus.rules`, and what it says; both are empty if none is."""
    if rules.blocklist and (word := _blocked(text, rules.blocklist)):
        return "blocklist", f"it holds {word!r}"
    if rules.gopher is not None and (why := _gopher(text, rules.gopher)):
        return "gopher", why
    if rules.repetition is not None and (why := _repetition(text, rules.repetition)):
        return "repetition", why
    if rules.fineweb is not None and (why := _fineweb(text, rules.fineweb)):
        return "fineweb", why
    return "", ""


def c4_lines(text: str, limits: C4) -> tuple[str, str]:
    """A text without the lines that C4 drops, and why the whole document goes; empty if it stays."""
    lower = text.lower()
    if "lorem ipsum" in lower:
        return text, "lorem ipsum"
    if "{" in text:
        return text, "a curly bracket"
    lines = [line for line in text.split("\n") if _stays(line.strip(), limits)]
    sentences = sum(len(_SENTENCE.findall(line)) for line in lines)
    if sentences < limits.min_sentences:
        return text, f"{sentences} sentences are left"
    return "\n".join(lines), ""


def _stays(line: str, limits: C4) -> bool:
    if limits.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith(_ELLIPSES)):
        return False
    lower = line.lower()
    return (
        len(line.split()) >= limits.min_line_words
        and "javascript" not in lower
        and not any(policy in lower for policy in _POLICIES)
    )


def _gopher(text: str, limits: Gopher) -> str:
    words = text.split()
    real = [word for word in words if any(map(str.isalnum, word))]
    if not limits.min_words <= len(real) <= limits.max_words:
        return f"{len(real):,} words"
    length = sum(map(len, real)) / max(len(real), 1)
    if not limits.min_word_length <= length <= limits.max_word_length:
        return f"words of {length:.1f} characters on average"

    count = max(len(words), 1)
    hashes, ellipses = text.count("#") / count, (text.count("...") + text.count("\u2026")) / count
    if max(hashes, ellipses) > limits.max_symbols:
        return f"{max(hashes, ellipses):.2f} {'hashes' if hashes > ellipses else 'ellipses'} for each word"
    lines = [line.strip() for line in text.split("\n")]
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    if bullets > limits.max_bullet_lines:
        return f"{bullets:.0%} of its lines begin with a bullet"
    if (endings := sum(line.endswith(_ELLIPSES) for line in lines) / len(lines)) > limits.max_ellipsis_lines:
        return f"{endings:.0%} of its lines end with an ellipsis"
    if (letters := sum(any(map(str.isalpha, word)) for word in words) / count) < limits.min_alphabetic:
        return f"{letters:.0%} of its words hold a letter"

    wanted = set(limits.stop_words)
    if limits.min_stop_words and len(wanted.intersection(map(str.lower, words))) < limits.min_stop_words:
        return f"fewer than {limits.min_stop_words} of the stop words"
    return ""


def _repetition(text: str, limits: Repetition) -> str:
    size = max(len(text), 1)
    for name, parts, most, most_characters in (
        (
            "paragraphs",
            _PARAGRAPH.split(text.strip()),
            limits.duplicate_paragraphs,
            limits.duplicate_paragraph_characters,
        ),
        ("lines", _LINE.split(text), limits.duplicate_lines, limits.duplicate_line_characters),
    ):
        count, characters = _repeated(parts)
        if count / len(parts) > most:
            return f"{count / len(parts):.0%} of its {name} occurred before"
        if characters / size > most_characters:
            return f"{name} that occurred before hold {characters / size:.0%} of its characters"

    words = text.split()
    for length, most in sorted(limits.top_ngrams.items()):
        if (share := _commonest(words, length) / size) > most:
            return f"its commonest {length} words hold {share:.0%} of its characters"
    for length, most in sorted(limits.duplicate_ngrams.items()):
        if (share := _repeated_ngrams(words, length) / size) > most:
            return f"{length} words that occurred before hold {share:.0%} of its characters"
    return ""


def _fineweb(text: str, limits: FineWeb) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "no line"
    if (share := sum(line.rstrip().endswith(_ENDS) for line in lines) / len(lines)) < limits.min_punctuated_lines:
        return f"{share:.0%} of its lines end like a sentence"
    if (share := sum(len(line) <= _SHORT_LINE for line in lines) / len(lines)) > limits.max_short_lines:
        return f"{share:.0%} of its lines are short"
    _, characters = _repeated(lines)
    if (share := characters / max(len(text.replace("\n", "")), 1)) > limits.max_duplicate_characters:
        return f"lines that occurred before hold {share:.0%} of its characters"
    if (share := text.count("\n") / max(len(text.split()), 1)) > limits.max_lines_per_word:
        return f"{share:.2f} lines for each word"
    return ""


def _blocked(text: str, words: Sequence[str]) -> str:
    lower = text.lower()
    for word in words:
        if word.lower() in lower and re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", lower):
            return word
    return ""


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts occurred before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        seen.add(part)
    return count, characters


def _commonest(words: list[str], length: int) -> int:
    """Characters in the commonest n-gram, all its occurrences together; 0 where none occurs twice."""
    ngrams = Counter(zip(*(words[at:] for at in range(length)), strict=False))
    if not ngrams:
        return 0
    ngram, count = max(ngrams.items(), key=lambda pair: (pair[1], pair[0]))
    return (sum(map(len, ngram)) + length - 1) * count if count > 1 else 0


def _repeated_ngrams(words: list[str], length: int) -> int:
    """Characters in n-grams that occurred before; those that overlap are counted once."""
    seen: set[tuple[str, ...]] = set()
    characters = at = 0
    while at <= len(words) - length:
        ngram = tuple(words[at : at + length])
        if ngram in seen:
            characters, at = characters + sum(map(len, ngram)), at + length
        else:
            seen.add(ngram)
            at += 1
    return characters
