"""The chat format of any template over any fast tokenizer: rendered in another process, and found in the rendering."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from training.data.conversations.chat_format import (
    ASSISTANT,
    HIDDEN,
    ChatFormat,
    Conversation,
    Encoded,
    RowRefused,
    Turn,
    is_learned,
    with_dictionaries,
)
from training.data.conversations.control_tokens import ControlTokens, Place, TokenRow
from training.data.conversations.named_templates import exported, learns_added, with_texts
from training.data.conversations.spans import Alignment, Masked, Masking, Message, Placed, Words, align
from training.data.conversations.template_frame import Frame, look_at
from training.data.conversations.template_process import Limits, Rendering, Request, TemplateProcess
from training.data.conversations.tokenizer_files import TokenizerFiles
from training.data.tokens.byte_bpe import ENDS_OF_TEXT
from training.data.tokens.shards import Int64

_CALLS: tuple[AbstractSet[str], ...] = ({"name", "argument"}, {"argument"}, {"name"}, frozenset())
_KINDS = {"content": "text", "thought": "thought", "name": "tool call", "argument": "arguments of a tool call"}


@dataclass
class _Row:
    """A conversation on its way.

    Attributes:
        tried: How many ways of masking its tool calls were tried.
        alignment: Where its texts stand in the rendering; None as long as that is not known.
        marked: What the template marks as the assistant's.
        heads: White space that the template kept before an assistant's content, in characters, by message.
        trimmed: Messages of which the template cut white space.
        opened: Where the assistant's turn begins, by message.
        refused: Why it cannot be encoded.
    """

    conversation: Conversation
    messages: list[dict[str, Any]]
    tools: list[Any]
    tried: int = 0
    alignment: Alignment | None = None
    marked: tuple[tuple[int, int], ...] = ()
    heads: dict[int, int] = field(default_factory=dict)
    trimmed: set[int] = field(default_factory=set)
    opened: dict[int, int] = field(default_factory=dict)
    refused: RowRefused | None = None

    def refuse(self, why: str, number: int | None = None) -> None:
        """Note why the conversation cannot be encoded; the first reason stays."""
        message = "" if number is None else f"message {number + 1}: "
        self.refused = self.refused or RowRefused(f"{self.conversation.named}: {message}{why}")


class ForeignFormat(ChatFormat):
    """See `ChatFormat.load`.

    Attributes:
        frame: What the template writes around the turns.
    """

    def __init__(
        self,
        files: TokenizerFiles,
        template: str,
        name: str,
        limits: Limits,
    ) -> None:
        """See `ChatFormat.load`."""
        self.name, self.template = name, template
        self.learns_added = learns_added(template)
        self.process = TemplateProcess(template, name, files.variables, limits=limits)
        self._variables, self.has_start = files.variables, files.has_start
        plain = ControlTokens(files.content)
        self.frame: Frame = look_at(self.process, plain.added, plain.ids)
        self.tokens = plain.with_more(self.frame.controls)
        self.borders = _borders(self.process.borders, self.tokens)
        self._arguments_as_text: bool | None = None
        self.added_before_answer = self.frame.added_before_answer

        added = plain.added
        ids = {role: added.get(files.variables.get(role, "")) for role in ("bos_token", "eos_token", "pad_token")}
        end, turn_ends = ids["eos_token"], tuple(added[text] for text in self.frame.ends)
        if end is None or end in turn_ends:
            end = next((added[text] for text in ENDS_OF_TEXT if text in plain.ids), end)
        self.turn_ends = turn_ends
        self.end_of_text = turn_ends[0] if end is None else end
        self.stops = tuple(dict.fromkeys([*turn_ends, self.end_of_text, *files.ends]))
        self.start = ids["bos_token"] if files.has_start or self._writes_start() else None
        self.pad = self.end_of_text if ids["pad_token"] is None else ids["pad_token"]
        self._answer_ends = frozenset([*turn_ends, *([] if ids["eos_token"] is None else [ids["eos_token"]])])

    def encode_each(self, conversations: Sequence[Conversation]) -> list[Encoded | RowRefused]:
        """See `ChatFormat`."""
        rows = [self._row(conversation) for conversation in conversations]
        self._align(rows, prompt=False)
        self._keep_heads([row for row in rows if row.alignment])
        self._open_turns([row for row in rows if row.alignment])

        spans: list[list[tuple[int, int, int]]] = []
        for row in rows:
            spans.append([] if row.refused else self._spans(row))
        tokenized = self._tokenize(rows)
        results: list[Encoded | RowRefused] = []
        for row, turns, tokens in zip(rows, spans, tokenized, strict=True):
            encoded = None if row.refused or tokens is None else self._encoded(row, turns, tokens)
            results.append(encoded or row.refused or RowRefused(f"{row.conversation.named}: it cannot be encoded"))
        return results

    def prompts(self, conversations: Sequence[Conversation]) -> list[Int64]:
        """See `ChatFormat`. What the template puts before an answer, such as an empty thought, is a part of it."""
        rows = [self._row(conversation) for conversation in conversations]
        added = "" if self.learns_added else self.frame.added_before_answer
        self._align(rows, prompt=True, ending=added)
        results = []
        for row, tokens in zip(rows, self._tokenize(rows), strict=True):
            if row.refused or tokens is None:
                raise row.refused or RowRefused(f"{row.conversation.named}: it cannot be encoded")
            results.append(tokens.ids)
        return results

    @property
    def variables(self) -> Mapping[str, str]:
        """See `ChatFormat`."""
        return self._variables

    def as_rendered(self, conversation: Conversation) -> list[dict[str, Any]]:
        """See `ChatFormat`."""
        return self._row(conversation).messages

    def render(self, messages: Sequence[Message], prompt: bool = False, tools: Sequence[Any] = ()) -> str:
        """See `ChatFormat`."""
        row = self._row(Conversation(messages, tools))
        (rendering,) = self.process.render([Request(row.messages, row.tools, prompt)])
        if rendering.error:
            raise RowRefused(f"a conversation: {self.name} refuses it: {rendering.error}")
        return rendering.text

    def decode(self, ids: Sequence[int]) -> str:
        """See `ChatFormat`."""
        return str(self.tokens.tokenizer.decode(list(ids), skip_special_tokens=False))

    def encode_plain(self, text: str) -> list[int]:
        """See `ChatFormat`."""
        (row,) = self.tokens.encode([text], [()])
        assert row is not None  # no control token is expected, and with renamed ones none can come
        ids: list[int] = row.ids.tolist()
        return ids

    def as_read(self, text: str) -> str:
        """See `ChatFormat`."""
        return self.decode(self.encode_plain(text))

    def count_controls(self, ids: Int64) -> int:
        """See `ChatFormat`."""
        return self.tokens.count(ids)

    def written_controls(self, conversation: Conversation) -> int:
        """Number of control tokens that the template writes into a conversation's rendering.

        Raises:
            RowRefused: The template refuses it.
        """
        row = self._row(conversation)
        self._align([row], prompt=False)
        if row.refused or row.alignment is None:
            raise row.refused or RowRefused(f"{conversation.named}: it cannot be rendered")
        return len(self._written(row.alignment))

    def is_thought(self, text: str) -> bool:
        """See `ChatFormat`. A thought ends with a text at which the template cuts answers."""
        return any(text.rstrip().endswith(border) for border in self.process.borders)

    @cached_property
    def exported(self) -> str:
        """See `ChatFormat`. Contents become texts first where the template would print parts or the word None."""
        return exported(self.template if self._prints_texts_alone() else with_texts(self.template))

    def _prints_texts_alone(self) -> bool:
        word = Words().word(0)
        for content in (None, [{"type": "text", "text": word}]):
            messages: list[dict[str, Any]] = [
                {"role": "user", "content": content},
                {"role": ASSISTANT, "content": word},
            ]
            (rendering,) = self.process.render([Request(messages)])
            if not rendering.error and ("None" in rendering.text or "{'" in rendering.text):
                return False
            if content and not rendering.error and rendering.text.count(word) != len(messages):
                return False
        return True

    def _wants_text(self) -> bool:
        """Whether the template joins the arguments of a tool call to other texts, and so wants them as JSON text."""
        words = Words()
        given = {words.word(0): words.word(1)}
        question = {"role": "user", "content": words.word(2)}
        for arguments in (given, json.dumps(given)):
            call = {"type": "function", "id": "a00000001", "function": {"name": words.word(3), "arguments": arguments}}
            calling = {"role": ASSISTANT, "content": "", "tool_calls": [call]}
            (rendering,) = self.process.render([Request([question, calling])])
            if not rendering.error and words.word(1) in rendering.text:
                return arguments is not given
        return False

    def encode_rendered(self, text: str) -> list[int]:
        """See `ChatFormat`."""
        return list(self.tokens.tokenizer.encode(text, add_special_tokens=False).ids)

    def _writes_start(self) -> bool:
        start = self._variables.get("bos_token")
        return start is not None and self.frame.opening.startswith(start) and start not in self.frame.between

    def _row(self, conversation: Conversation) -> _Row:
        messages = []
        for message in conversation.messages:
            shown = {key: value for key, value in message.items() if key not in HIDDEN}
            if shown.get("content") is None:
                shown["content"] = ""
            calls = shown.pop("tool_calls", None)
            if calls:
                shown["tool_calls"] = [self._call(call) for call in calls]
            messages.append(shown)
        row = _Row(conversation, messages, list(conversation.tools))
        for number, shown in enumerate(messages):
            if not isinstance(shown["content"], str):
                row.refuse("its content is no text; join its parts first", number)
            elif is_learned(conversation.messages[number]) and not (
                shown["content"].strip() or shown.get("tool_calls")
            ):
                row.refuse("an answer without text cannot be learned", number)
        return row

    def _call(self, call: Any) -> Any:
        if self._arguments_as_text is None:
            self._arguments_as_text = self._wants_text()
        parsed = with_dictionaries(call)
        if not self._arguments_as_text or not isinstance(parsed, Mapping):
            return parsed
        inner = parsed.get("function", parsed)
        if not isinstance(inner, Mapping) or isinstance(inner.get("arguments"), str):
            return parsed
        written = {**inner, "arguments": json.dumps(inner.get("arguments"), ensure_ascii=False)}
        return {**parsed, "function": written} if "function" in parsed else written

    def _masked(
        self, row: _Row, words: Words, calls: AbstractSet[str], strip: bool = False, ending: bool = False
    ) -> Masked | None:
        masking = Masking(words, self.borders, self.tokens.pattern)
        try:
            return masking.mask(row.messages, row.tools, calls, strip)
        except ValueError as error:
            row.refuse(str(error))
            return None

    def _align(self, rows: Sequence[_Row], prompt: bool, ending: str = "") -> None:
        """Render rows as they are and with words, and find their texts."""
        words = Words()
        waiting = [row for row in rows if not row.refused]
        renderings = self.process.render(
            [Request(row.messages, row.tools, prompt, row.conversation.named) for row in waiting]
        )
        real = {}
        for row, rendering in zip(waiting, renderings, strict=True):
            if rendering.error:
                row.refuse(f"{self.name} refuses it: {rendering.error}")
            real[id(row)], row.marked = rendering.text + ending, rendering.marked

        while waiting := [row for row in waiting if not row.refused and row.alignment is None]:
            masked = [(row, self._masked(row, words, _CALLS[row.tried])) for row in waiting]
            asked = [(row, one) for row, one in masked if one is not None]
            requests = [Request(one.messages, one.tools, prompt, row.conversation.named) for row, one in asked]
            for (row, one), rendering in zip(asked, self.process.render(requests), strict=True):
                row.alignment = self._aligned(row, one, rendering, real[id(row)], words, ending)
                row.tried += 1
                has_calls = any(message.get("tool_calls") for message in row.messages)
                if row.alignment is None and (row.tried == len(_CALLS) or not has_calls):
                    row.refuse(f"its turns cannot be found exactly in what {self.name} makes of it")
        for row in rows:
            if row.alignment is not None and not row.refused:
                self._nothing_is_lost(row)

    def _aligned(
        self, row: _Row, masked: Masked, rendering: Rendering, text: str, words: Words, ending: str
    ) -> Alignment | None:
        if rendering.error:
            return None
        return align(rendering.text + ending, text, words, masked.segments)

    def _nothing_is_lost(self, row: _Row) -> None:
        """Refuse a row of which the template leaves out a text; thoughts of the assistant may be left out."""
        assert row.alignment is not None
        last_of: dict[int, int] = {}
        for placed in row.alignment.placed:
            segment = row.alignment.segments[placed.number]
            last_of[segment.message] = max(last_of.get(segment.message, -1), placed.number)
        missing = {id(segment) for segment in row.alignment.missing()}
        for number, segment in enumerate(row.alignment.segments):
            if id(segment) not in missing or segment.message < 0 or segment.kind == "other":
                continue
            role = str(row.messages[segment.message]["role"])
            is_thought = role == ASSISTANT and (
                segment.kind == "thought" or (segment.kind == "content" and last_of.get(segment.message, -1) > number)
            )
            if not is_thought:
                row.refuse(f"{self.name} leaves out the {_KINDS[segment.kind]} of the role {role}", segment.message)
        for number, message in enumerate(row.messages):
            for call in message.get("tool_calls") or ():
                inner = call.get("function", call) if isinstance(call, Mapping) else {}
                if str(inner.get("name", "")) not in row.alignment.text:
                    row.refuse(f"{self.name} leaves out the tool call of the role {message['role']}", number)

    def _keep_heads(self, rows: Sequence[_Row]) -> None:
        """See which of the white space at the ends of answers the template kept: render them without it."""
        spaced = [
            row
            for row in rows
            if any(m["role"] == ASSISTANT and m["content"] != m["content"].strip() for m in row.messages)
        ]
        words = Words()
        masked = [(row, self._masked(row, words, _CALLS[row.tried - 1], strip=True)) for row in spaced]
        asked = [(row, one) for row, one in masked if one is not None]
        requests = [Request(one.messages, one.tools, False, row.conversation.named) for row, one in asked]
        for (row, _), rendering in zip(asked, self.process.render(requests), strict=True):
            assert row.alignment is not None
            numbers = [int(match.group(1)) for match in words.pattern.finditer(rendering.text)]
            if numbers != [placed.number for placed in row.alignment.placed]:
                continue
            stripped = words.pattern.split(rendering.text)[::2]
            for index, (start, end) in enumerate(row.alignment.gaps()):
                self._divide_gap(row, index, row.alignment.text[start:end], stripped[index])

    def _divide_gap(self, row: _Row, index: int, gap: str, stripped: str) -> None:
        """Say how much of the white space around a gap is a tail of the answer before, and a head of the one after."""
        assert row.alignment is not None
        placed = row.alignment.placed
        before = _message_of(row.alignment, placed[index - 1]) if index else None
        after = _message_of(row.alignment, placed[index]) if index < len(placed) else None
        if before == after:
            return
        tail = head = ""
        if before is not None and row.messages[before]["role"] == ASSISTANT:
            content = row.messages[before]["content"]
            tail = content[len(content.rstrip()) :]
        if after is not None and row.messages[after]["role"] == ASSISTANT:
            content = row.messages[after]["content"]
            head = content[: len(content) - len(content.lstrip())]

        kept = len(gap) - len(stripped)
        for tail_kept in sorted(range(len(tail) + 1), key=lambda number: number not in (0, len(tail))):
            head_kept = kept - tail_kept
            if 0 <= head_kept <= len(head) and gap == (tail[:tail_kept] + stripped + head[len(head) - head_kept :]):
                break
        else:
            tail_kept, head_kept = len(tail), 0
        if before is not None and tail_kept < len(tail):
            row.trimmed.add(before)
        if after is not None:
            row.heads[after] = head_kept
            if head_kept < len(head):
                row.trimmed.add(after)

    def _open_turns(self, rows: Sequence[_Row]) -> None:
        """Find where turns begin that do not begin with their content."""
        waiting: list[tuple[_Row, int]] = []
        for row in rows:
            assert row.alignment is not None
            for number in _learned_of(row):
                placed = row.alignment.of(number)
                if not placed or not (self.learns_added or _begins_otherwise(row.alignment, placed[0])):
                    continue
                gap = row.alignment.gap_before(placed[0])
                at = gap.rfind(self.frame.prompt) if self.frame.prompt else -1
                if at >= 0:
                    row.opened[number] = placed[0].start - len(gap) + at + len(self.frame.prompt)
                else:
                    waiting.append((row, number))

        requests = [Request(row.messages[:number], row.tools, True, row.conversation.named) for row, number in waiting]
        for (row, number), rendering in zip(waiting, self.process.render(requests), strict=True):
            assert row.alignment is not None
            if not rendering.error and row.alignment.text.startswith(rendering.text):
                row.opened[number] = len(rendering.text)

    def _spans(self, row: _Row) -> list[tuple[int, int, int]]:
        """Message, first character and end of every learned turn, with its end token."""
        assert row.alignment is not None
        written = self._written(row.alignment)
        spans = []
        for number in _learned_of(row):
            placed = row.alignment.of(number)
            if not placed:
                row.refuse(f"its turn cannot be found in what {self.name} makes of it", number)
                continue
            start = self._start_of(row, number, placed[0])
            end = self._end_of(row.alignment, written, number, placed[-1].end)
            if start is None:
                row.refuse(f"where its turn begins cannot be found in what {self.name} makes of it", number)
            elif end is None:
                row.refuse(f"{self.name} does not end its turn with a token", number)
            elif self.process.has_marks and not any(a < end.end and b > start for a, b in row.marked):
                row.refuse(f"{self.name} marks other text than this turn as the assistant's", number)
            else:
                spans.append((number, start, end.end))
        return spans

    def _start_of(self, row: _Row, number: int, first: Placed) -> int | None:
        assert row.alignment is not None
        if number in row.opened:
            start, added = row.opened[number], self.frame.added_before_answer
            skipped = added if added and not self.learns_added and not _is_thought(row.alignment, first) else ""
            return start + len(skipped) if row.alignment.text.startswith(skipped, start) else start
        if self.learns_added or _begins_otherwise(row.alignment, first):
            return None
        before = row.alignment.segments[first.number].before
        border = before.strip()
        if border:
            gap = row.alignment.gap_before(first)
            at = gap.rfind(border)
            return first.start if at < 0 else first.start - len(gap) + at
        return first.start - row.heads.get(number, 0)

    def _end_of(self, alignment: Alignment, written: Sequence[Place], number: int, after: int) -> Place | None:
        """The end token of a turn: the first one before the next turn."""
        limit = min(
            (
                placed.start
                for placed in alignment.placed
                if placed.start >= after and _message_of(alignment, placed) != number
            ),
            default=len(alignment.text),
        )
        opening = alignment.text.find(self.frame.prompt, after, limit) if self.frame.prompt else -1
        limit = limit if opening < 0 else opening
        return next((p for p in written if p.start >= after and p.end <= limit and p.id in self._answer_ends), None)

    def _written(self, alignment: Alignment) -> list[Place]:
        """The control tokens that the template wrote."""
        return [place for start, end in alignment.gaps() for place in self.tokens.places(alignment.text, start, end)]

    def _tokenize(self, rows: Sequence[_Row]) -> list[TokenRow | None]:
        ready = [row.alignment for row in rows if row.alignment is not None and not row.refused]
        tokens = iter(self.tokens.encode([one.text for one in ready], [self._written(one) for one in ready]))
        results = []
        for row in rows:
            tokenized = next(tokens) if row.alignment is not None and not row.refused else None
            if tokenized is None:
                row.refuse("names of control tokens in its texts cannot be kept apart from the template's")
            elif self.start is not None and (tokenized.ids[:2] == self.start).sum() > 1:
                row.refuse(f"{self.name} begins it with two start tokens")
            results.append(tokenized)
        return results

    def _encoded(self, row: _Row, spans: Sequence[tuple[int, int, int]], tokens: TokenRow) -> Encoded | None:
        assert row.alignment is not None
        text = row.alignment.text
        notes: Counter[str] = Counter()
        learned = np.zeros(len(tokens.ids), np.bool_)
        turns = []
        for number, start, end in spans:
            inside = (tokens.ends > start) & (tokens.starts < end)
            inside |= (tokens.starts == tokens.ends) & (tokens.starts >= start) & (tokens.starts < end)
            places = np.flatnonzero(inside)
            first, last = int(places[0]), int(places[-1])
            if int(tokens.ids[last]) not in self._answer_ends or learned[first : last + 1].any():
                row.refuse("its end token is no token of its own", number)
                return None
            learned[first : last + 1] = True
            begin = min(int(tokens.starts[first]), start)
            notes["moved_boundaries"] += begin < start
            notes["trimmed"] += number in row.trimmed
            added = self.frame.added_before_answer
            notes["thoughts_added"] += bool(added) and not self.learns_added and text.endswith(added, 0, start)
            turns.append(Turn(number, first, last + 1, text[begin:end]))

        thoughts = {segment.message for segment in row.alignment.missing() if segment.kind in ("content", "thought")}
        notes["thoughts_removed"] = len(thoughts)
        has_system = bool(row.messages) and row.messages[0]["role"] in ("system", "developer")
        notes["system_added"] = int(bool(self.frame.added_system) and not has_system)
        notes["names_as_text"] = int(tokens.names_as_text)
        return Encoded(tokens.ids, learned, tuple(turns), +notes)


def _learned_of(row: _Row) -> list[int]:
    return [number for number, message in enumerate(row.conversation.messages) if is_learned(message)]


def _message_of(alignment: Alignment, placed: Placed) -> int:
    return alignment.segments[placed.number].message


def _is_thought(alignment: Alignment, placed: Placed) -> bool:
    return alignment.segments[placed.number].kind == "thought"


def _begins_otherwise(alignment: Alignment, first: Placed) -> bool:
    """Whether a turn begins with something that is not the message's content."""
    return alignment.segments[first.number].kind != "content"


def _borders(texts: Iterable[str], tokens: ControlTokens) -> re.Pattern[str]:
    kept = sorted((text for text in texts if not tokens.pattern.search(text)), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, kept)) or r"(?!)")
