"""Questions and answers from the docstrings of Python modules."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from training.data.tables import fraction
from training.data.text.sentences import ends_sentence, has_capitals, sentences
from training.data.text.words import extent, word_weight, words_of

TEMPLATES = (
    "What does `{name}` do?",
    "Explain `{name}` in one sentence.",
    "What is `{name}` for?",
    "Describe `{name}` briefly.",
    "I found `{name}` in some code. What is it?",
)
_UNMARKED = 0.5  # of the names; people ask for textwrap.dedent as often as for `textwrap.dedent`
_MIN_ANSWER = 20
_MIN_WORDS = 2
_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*(->|=|:)\s*.*)?$")
_NOT_PROSE = re.compile(r"^(>>>|\.\. |[-=*#+~]{3,}|\$ |@|:\w)", re.MULTILINE)
_MARKUP = ((re.compile(r":\w+:`~?([^`]+)`"), r"`\1`"), (re.compile(r"``([^`]+)``"), r"`\1`"))
_Definition = ast.FunctionDef | ast.AsyncFunctionDef


class DocstringItem(NamedTuple):
    """A documented name, such as `textwrap.dedent`, and the sentence or two that say what it is."""

    name: str
    answer: str

    @property
    def prompt(self) -> str:
        """The question. Its wording, and whether the name stands in backticks, is a pure function of the name."""
        question = TEMPLATES[int(fraction("template", self.name) * len(TEMPLATES))]
        if fraction("unmarked", self.name) < _UNMARKED:
            question = question.replace("`", "")
        return question.format(name=self.name)


def docstring_items(module: str, text: str, max_characters: int) -> list[DocstringItem]:
    """Public functions, methods and classes of a module that say in prose what they do.

    Args:
        module: Dotted name. A module with a private part has no public names.
        text: Source code. Text that is not Python, such as a piece of a cut module, has no items.
        max_characters: Longer answers end at the last whole sentence, or are left out if there is none.
    """
    if any(part.startswith("_") for part in module.split(".")):
        return []

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []

    items: dict[str, DocstringItem] = {}
    for name, node in _public(tree, module):
        answer = clean_docstring(ast.get_docstring(node, clean=False) or "", max_characters)
        if answer and name not in items:
            items[name] = DocstringItem(name, answer)
    return list(items.values())


def _public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, _Definition | ast.ClassDef]]:
    for child in node.body:
        if isinstance(child, _Definition | ast.ClassDef) and not child.name.startswith("_"):
            name = f"{prefix}.{child.name}" if prefix else child.name
            yield name, child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, name)


def clean_docstring(docstring: str, max_characters: int) -> str:
    """The first paragraph of prose as one line without markup; empty if there is none that fits."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring))[:2]:
        first, _, rest = paragraph.partition("\n")
        if _SIGNATURE.match(first):  # the calling convention, as in the docstrings of C functions
            paragraph = rest
        if not paragraph.strip():
            continue
        if _NOT_PROSE.search(paragraph):
            return ""

        line = " ".join(paragraph.split())
        for pattern, replacement in _MARKUP:
            line = pattern.sub(replacement, line)
        return _shortened(line, max_characters)
    return ""


def _shortened(line: str, max_characters: int) -> str:
    """The first sentences of a line that fit; empty for what is too short, or is more symbols than words."""
    parts = sentences(line, has_capitals(line))
    while parts and extent("".join(parts).strip()) > max_characters:
        parts.pop()
    short = "".join(parts).rstrip(" :,;")
    words = words_of(short)
    if extent(short) < _MIN_ANSWER or word_weight(words) < _MIN_WORDS or 2 * sum(map(len, words)) < len(short):
        return ""
    return short if ends_sentence(short) else short + "."
