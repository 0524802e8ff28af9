"""What a chat template writes around the turns, seen by rendering words that nobody can guess."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from training.data.conversations.spans import Words
from training.data.conversations.template_process import Request, TemplateProcess, TemplateRefused

_INSIDE = re.compile(r"think|thought|reason|tool|function", re.IGNORECASE)
_ROLES = re.compile(r"\b(system|user|assistant|model|human|developer)\b", re.IGNORECASE)
_SHORTEST_NAME = 3
_FEWEST_WORDS = 4  # of a text that a template adds; fewer are names of roles and the like


@dataclass(frozen=True)
class Frame:
    """What a template writes.

    Attributes:
        opening: Before the first user's text.
        between: After an answer and before the next user's text.
        prompt: The opening of the assistant's turn, by which an answer is asked for; it may be empty.
        added_before_answer: What stands between that opening and the last answer, such as an empty thought.
        ends: The tokens that end an answer.
        controls: Added tokens around the turns, whether or not the tokenizer calls them special.
        added_system: Words before the first turn that are the template's own.
        prompt_is_prefix: Whether a conversation with the opening is the beginning of the same one with its answer.
    """

    opening: str
    between: str
    prompt: str
    added_before_answer: str
    ends: tuple[str, ...]
    controls: frozenset[str]
    added_system: str
    prompt_is_prefix: bool


def look_at(process: TemplateProcess, added: Mapping[str, int], special: Iterable[str]) -> Frame:
    """Render two questions and answers, and see what stands around them.

    Args:
        process: With the template.
        added: The tokenizer's added tokens with their ids.
        special: Those that it calls special.

    Raises:
        TemplateRefused: The template refuses a plain conversation, loses a turn, or ends no answer with a token.
    """
    words = Words()
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": words.word(number)} for number, role in enumerate(roles)]
    whole, asked, prompted, first, first_prompted = process.render(
        [
            Request(messages),
            Request(messages[:3]),
            Request(messages[:3], prompt=True),
            Request(messages[:1]),
            Request(messages[:1], prompt=True),
        ]
    )
    if whole.error or prompted.error:
        raise TemplateRefused(
            f"{process.name}: it refuses two questions with their answers: {whole.error or prompted.error}"
        )
    numbers = [int(match.group(1)) for match in words.pattern.finditer(whole.text)]
    if numbers != [0, 1, 2, 3]:
        lost = next((number for number in range(4) if numbers.count(number) != 1), None)
        fault = (
            "renders the turns in another order"
            if lost is None
            else f"renders a text of the role {roles[lost]} {numbers.count(lost)} times, or changes its letters"
        )
        raise TemplateRefused(f"{process.name}: it {fault}")
    opening, question, between, second, tail = words.pattern.split(whole.text)[::2]

    names = re.compile("|".join(sorted(map(re.escape, added), key=lambda name: (-len(name), name))) or r"(?!)")
    ends = tuple(dict.fromkeys(_end_of(process, names, gap) for gap in (between, tail)))
    around = [*names.findall(opening + between + tail), *(n for n in names.findall(question) if not _INSIDE.search(n))]

    prompt = _added(first.text, first_prompted.text) or _added(asked.text, prompted.text)
    last_prompt = words.pattern.split(prompted.text)[-1]
    is_prefix = whole.text.startswith(prompted.text)
    after = second[len(last_prompt) :] if second.startswith(last_prompt) else ""
    return Frame(
        opening,
        between,
        prompt,
        # White space is a part of the answer's first token in many vocabularies, and says nothing by itself.
        after if after.strip() else "",
        ends,
        frozenset([*(name for name in around if _is_control(name)), *ends]),
        _own_words(opening, [*special, *around]),
        is_prefix,
    )


def _end_of(process: TemplateProcess, names: re.Pattern[str], gap: str) -> str:
    match = names.search(gap)
    if match is None or gap[: match.start()].strip():
        raise TemplateRefused(
            f"{process.name}: it does not end an answer with one of the tokenizer's added tokens but with "
            f"{gap[:40]!r}; name another chat_template, or add its end token to the tokenizer"
        )
    return match.group()


def _is_control(name: str) -> bool:
    """Whether an added token around a turn is one of its borders, and neither white space nor a thought's border."""
    return len(name.strip()) >= _SHORTEST_NAME and not _INSIDE.search(name)


def _added(shorter: str, longer: str) -> str:
    return longer[len(shorter) :] if longer.startswith(shorter) else ""


def _own_words(opening: str, names: Iterable[str]) -> str:
    """What an opening says besides control tokens and the names of roles; empty if that is next to nothing."""
    text = opening
    for name in names:
        text = text.replace(name, "\n")
    text = "\n".join(line for line in text.splitlines() if _ROLES.sub("", line).strip()).strip()
    return text if len(re.findall(r"[^\W\d_]{2,}", text)) >= _FEWEST_WORDS else ""
