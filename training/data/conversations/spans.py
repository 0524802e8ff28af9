"""Finds contents in a rendered conversation: each is first rendered as a word that nobody can guess.

The rendering with those words, with the contents put back in their places, must be the real rendering to the letter.
Then the places are certain, whatever the template does.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
TOOLS = -1
THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Segment:
    """A part of a message that is rendered as one word.

    Attributes:
        message: The message's number, or `TOOLS`.
        kind: `content`, `thought`, `name` or `argument` of a tool call, or `other`.
        text: What stands there, without white space at its ends.
        before: What stands between this part of a content and the part before, or the content's beginning.
    """

    message: int
    kind: str
    text: str
    before: str = ""


@dataclass(frozen=True)
class Placed:
    """A segment's place in the rendering: its number, its first character and the one after its last."""

    number: int
    start: int
    end: int


_CHARACTERS = string.ascii_lowercase + string.digits


class Words:
    """Words of one rendering, each of which stands for a segment."""

    def __init__(self) -> None:
        # Every letter and digit is in it, so a template that changes one is found out each time, and not by chance.
        nonce = "".join(secrets.SystemRandom().sample(_CHARACTERS, len(_CHARACTERS)))
        self._form = f"x{nonce}x{{}}z"
        self.pattern = re.compile(rf"x{nonce}x(\d+)z")

    def word(self, number: int) -> str:
        """The word of a segment."""
        return self._form.format(number)


@dataclass
class Masked:
    """A conversation whose texts are words.

    Attributes:
        messages: For the template.
        tools: For the template.
        segments: What the words stand for.
    """

    messages: list[dict[str, Any]]
    tools: list[Any]
    segments: list[Segment] = field(default_factory=list)


@dataclass(frozen=True)
class Masking:
    """How texts become words.

    Attributes:
        words: The words.
        borders: Texts that stay, because the template looks for them.
        control: Names of control tokens; a text anywhere that holds one becomes a word.
    """

    words: Words
    borders: re.Pattern[str]
    control: re.Pattern[str]

    def mask(
        self, messages: Sequence[Message], tools: Sequence[Any], calls: AbstractSet[str], strip: bool = False
    ) -> Masked:
        """Mask a conversation.

        Args:
            messages: As the template sees them.
            tools: Definitions of tools.
            calls: Which of `name` and `argument` of a tool call become words.
            strip: Leave out the white space at the ends of the assistant's contents.
        """
        result = Masked([], [])
        for number, message in enumerate(messages):
            masked: dict[str, Any] = {}
            for key, value in message.items():
                if key == "role":
                    masked[key] = value
                elif key == "content" and isinstance(value, str):
                    text = value.strip() if strip and message["role"] == "assistant" else value
                    masked[key] = self._content(result, number, "content", text)
                elif key in THOUGHTS and isinstance(value, str):
                    masked[key] = self._content(result, number, "thought", value)
                elif key == "tool_calls" and value:
                    masked[key] = [self._call(result, number, call, calls) for call in value]
                else:
                    masked[key] = self._other(result, number, value, "other", False)
            result.messages.append(masked)
        result.tools = [self._other(result, TOOLS, tool, "other", False) for tool in tools]
        return result

    def _content(self, result: Masked, message: int, kind: str, text: str) -> str:
        pieces: list[str] = []
        before, last = "", 0
        for border in [*self.borders.finditer(text), None]:
            part = text[last : border.start() if border else len(text)]
            inner = part.strip()
            if inner:
                lead = part[: part.index(inner)]
                tail = part[len(lead) + len(inner) :]
                pieces += [lead, self._word(result, Segment(message, kind, inner, before + lead)), tail]
                before = tail
            else:
                pieces.append(part)
                before += part
            if border:
                pieces.append(border.group())
                before += border.group()
                last = border.end()
        return "".join(pieces)

    def _call(self, result: Masked, message: int, call: Any, kinds: AbstractSet[str]) -> Any:
        if not isinstance(call, Mapping):
            return call
        inner = call.get("function", call)
        if not isinstance(inner, Mapping):
            return call
        masked = {
            key: self._other(result, message, value, "argument", "argument" in kinds)
            if key == "arguments"
            else self._other(result, message, value, "name", key == "name" and "name" in kinds)
            for key, value in inner.items()
            if inner is not call or key != "function"
        }
        if inner is call:
            return masked
        outer = {key: self._other(result, message, value, "other", False) for key, value in call.items()}
        return outer | {"function": masked}

    def _other(self, result: Masked, message: int, value: Any, kind: str, always: bool) -> Any:
        if isinstance(value, str):
            is_masked = value.strip() and (always or self.control.search(value))
            return self._word(result, Segment(message, kind, value)) if is_masked else value
        if isinstance(value, Mapping):
            for key in value:
                if self.control.search(str(key)):
                    raise ValueError(f"the key {str(key)[:60]!r} holds the name of a control token")
            return {key: self._other(result, message, item, kind, always) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._other(result, message, item, kind, always) for item in value]
        return value

    def _word(self, result: Masked, segment: Segment) -> str:
        result.segments.append(segment)
        return self.words.word(len(result.segments) - 1)


@dataclass(frozen=True)
class Alignment:
    """Every segment's place in a rendering, in the order of the places.

    Attributes:
        text: The real rendering.
        placed: Where segments stand; a segment may be missing, or stand there twice.
        segments: All segments.
    """

    text: str
    placed: tuple[Placed, ...]
    segments: tuple[Segment, ...]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """What the template wrote: the parts between segments."""
        last = 0
        for placed in self.placed:
            yield last, placed.start
            last = placed.end
        yield last, len(self.text)

    def of(self, message: int) -> list[Placed]:
        """The places of a message's segments."""
        return [placed for placed in self.placed if self.segments[placed.number].message == message]

    def missing(self) -> list[Segment]:
        """Segments that were not rendered."""
        there = {placed.number for placed in self.placed}
        return [segment for number, segment in enumerate(self.segments) if number not in there]

    def gap_before(self, placed: Placed) -> str:
        """What the template wrote before a segment."""
        start = max((other.end for other in self.placed if other.end <= placed.start), default=0)
        return self.text[start : placed.start]


def align(rendered: str, text: str, words: Words, segments: Sequence[Segment]) -> Alignment | None:
    """Find the segments in the real rendering by the rendering with words; None where the two do not agree.

    Args:
        rendered: With words.
        text: With contents.
        words: The words.
        segments: What they stand for.
    """
    placed: list[Placed] = []
    place, last = 0, 0
    matches = list(words.pattern.finditer(rendered))
    for number, match in enumerate(matches):
        literal = rendered[last : match.start()]
        if not text.startswith(literal, place):
            return None
        place += len(literal)

        index = int(match.group(1))
        following = rendered[match.end() : matches[number + 1].start() if number + 1 < len(matches) else len(rendered)]
        form = next(
            (
                form
                for form in _forms(segments[index].text)
                if text.startswith(form, place) and text.startswith(following, place + len(form))
            ),
            None,
        )
        if form is None:
            return None
        placed.append(Placed(index, place, place + len(form)))
        place += len(form)
        last = match.end()
    return Alignment(text, tuple(placed), tuple(segments)) if text[place:] == rendered[last:] else None


def _forms(text: str) -> Iterator[str]:
    """A text as templates write it: as it is, or inside JSON, or inside JSON in JSON."""
    yield text
    for escaped in (json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]):
        yield escaped
        yield json.dumps(escaped, ensure_ascii=False)[1:-1]
