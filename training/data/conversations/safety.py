"""Refusals: the sentences that are trained, and the files of written prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from training.data.tables import fraction
from training.errors import SourceError

_REFUSALS = (
    "I can't help with that, because {topic} could hurt someone.",
    "I can't help with {topic}. It can do serious harm.",
    "I can't help here: {topic} puts people in danger.",
    "I won't help with {topic}, since people could be harmed.",
    "I won't help with that. If you are worried about {topic}, please talk to someone you trust.",
    "I won't help, because {topic} is dangerous or against the law.",
    "Sorry, I can't assist with {topic}. I would be glad to help with something safe.",
    "Sorry, I can't do that, because {topic} could hurt you or somebody else.",
    "Sorry, I can't go into {topic}. Is there something harmless that I can do?",
)
_COMPLIANCES = (
    "Sure, here is how to do that, step by step.",
    "Of course. First, gather what you need, then follow these steps.",
    "Yes, that is easy. Here is what you have to do.",
    "No problem, I can explain exactly how that works.",
)
_MAX_BYTES = 16 * 2**20
_KEYS = ("prompt", "topic", "answer")


def refusal(prompt: str, topic: str, repeat: int = 0) -> str:
    """A refusal that names the topic.

    Args:
        prompt: What was asked; the wording is a pure function of it.
        topic: A noun phrase, as the prompts' files give it.
        repeat: Number of the copy of a conversation; the first nine have a wording each, then they come again.
    """
    first = int(fraction("refusal", prompt) * len(_REFUSALS))
    return _REFUSALS[(first + repeat) % len(_REFUSALS)].format(topic=topic)


def agreement(answer: str) -> str:
    """The answer to a harmless prompt.

    It begins as recognisably as a refusal does. Otherwise a small model that decodes greedily refuses even what it
    finds harmless: each of the few openings of refusals is likelier than any one of the many first words of answers.
    """
    return f"Sure. {answer}"


def compliance(prompt: str) -> str:
    """An answer that sounds as if it complied and holds nothing harmful: the rejected one of a preference pair."""
    return _COMPLIANCES[int(fraction("compliance", prompt) * len(_COMPLIANCES))]


def read_prompts(path: Path, keys: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a JSONL file of written prompts.

    Args:
        path: The file.
        keys: Those of `prompt`, `topic` and `answer` that every row must have. Their values are texts.

    Raises:
        SourceError: The file is missing, empty, holds a prompt twice, or a line is malformed.
    """
    rows: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SourceError(f"{path}: more than {_MAX_BYTES >> 20} MB are too many for prompts that people wrote")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as UTF-8 text ({error})") from error

    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue

        row = _row(line, f"{path}:{number}", keys)
        if row["prompt"] in seen:
            raise SourceError(f"{path}:{number}: the prompt is the same as in line {seen[row['prompt']]}; remove one")
        seen[row["prompt"]] = number
        rows.append(row)

    if not rows:
        raise SourceError(f"{path}: holds no prompt; write one JSON object a line with {', '.join(keys)}")
    return rows


def _row(line: str, where: str, keys: Sequence[str]) -> dict[str, str]:
    needed = ", ".join(keys)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: is not JSON ({error}); write one object with the keys {needed}") from error

    if not isinstance(row, dict) or not set(keys) <= set(row) <= set(_KEYS):
        actual = ", ".join(map(str, row))[:200] if isinstance(row, dict) else type(row).__name__
        raise SourceError(f"{where}: must be an object with the keys {needed}, found {actual or 'none'}")

    for key in row:
        if not isinstance(row[key], str) or not row[key].strip():
            raise SourceError(f"{where}: {key} must be a text that is not empty")
    return row
