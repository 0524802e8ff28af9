"""The forms in which people keep judged answers, recognised by looking at each row.

| format | keys |
|---|---|
| `prompted` | `prompt`, `chosen`, `rejected`: texts or messages |
| `implicit_prompt` | `chosen` and `rejected`: whole conversations that begin alike |
| `transcripts` | `chosen` and `rejected`: texts with `Human:` and `Assistant:` turns, as HH-RLHF has them |
| `ranked` | `prompt` and `ranked`, best first, perhaps with `scores`; or `responses` with `scores` |
| `labelled` | `prompt`, `completion`, `label`: one answer, good or bad |
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import eq
from typing import Any

from training.data.conversations.formats import (
    Row,
    completion_of,
    demanded,
    mapped,
    prompt_of,
    shown_keys,
    with_system,
)
from training.data.conversations.messages import (
    ASSISTANT,
    TOOL,
    USER,
    Message,
    RowProblem,
    content_text,
    is_messages,
    kind_of,
    messages_of,
    parsed_list,
    prompt_key,
    tools_of,
    turns_key,
)
from training.specs.conversations import label_word

PROMPTED, IMPLICIT, TRANSCRIPTS, RANKED, LABELLED = "prompted", "implicit_prompt", "transcripts", "ranked", "labelled"
_AUTO = "auto"
_MOST_RANKED = 100  # a list of n answers gives n (n - 1) / 2 pairs
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_PROMPTS_DIFFER = "the prompts of chosen and rejected differ; an answer is judged beside another to the same prompt"
_WORDS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Judgement:
    """What a row says.

    Attributes:
        format: The format that it was in.
        prompt: Messages up to the one that is answered.
        pairs: The better and the worse answer of each pair, as messages.
        label: For a single answer, the row's own word for it; `answer` is judged by it.
        answer: The single answer.
    """

    format: str
    prompt: list[Message]
    pairs: tuple[tuple[list[Message], list[Message]], ...] = ()
    label: str = ""
    answer: list[Message] | None = None


def judgement_of(value: object, format_: str = _AUTO, columns: Mapping[str, str] | None = None) -> Judgement:
    """The judged answers that a row holds.

    Args:
        value: The row as it was read.
        format_: How it is held; `auto` recognises it.
        columns: Gatehouse's name of a column to the row's own.

    Raises:
        RowProblem: It holds none, or malformed ones.
    """
    row = mapped(value, columns or {})
    if tools_of(row):
        raise RowProblem("has tools, and pairs hold none; remove the row")
    if format_ == _AUTO:
        format_ = _recognised(row, value, columns or {})
    demanded(row, _KEYS[format_], format_, value)

    judgement = _PARSERS[format_](row)
    prompt = with_system(row, judgement.prompt)
    if not prompt or prompt[-1]["role"] not in (USER, TOOL):
        raise RowProblem("its prompt does not end with a question; repair the row")
    return Judgement(judgement.format, prompt, judgement.pairs, judgement.label, judgement.answer)


def is_good(label: str, labels: Mapping[str, bool]) -> bool | None:
    """What a label says; None for a word that is not known.

    Args:
        label: The word of a row, see `label_word`.
        labels: Those of the recipe; without any, true, false, 1 and 0 are known.
    """
    return (labels or _WORDS).get(label)


def _recognised(row: Row, value: object, columns: Mapping[str, str]) -> str:
    if "chosen" in row and "rejected" in row:
        if "prompt" in row:
            return PROMPTED
        if isinstance(row["chosen"], str) and not is_messages(row["chosen"]):
            return TRANSCRIPTS
        return IMPLICIT
    if "prompt" in row and ("ranked" in row or ("responses" in row and "scores" in row)):
        return RANKED
    if all(key in row for key in _KEYS[LABELLED]):
        return LABELLED
    raise RowProblem(
        f"is in no known format of preferences; its keys are {shown_keys(value, columns)}. Set columns of the source, "
        "such as {prompt: ..., chosen: ..., rejected: ...}, or exclude the file"
    )


def _prompted(row: Row) -> Judgement:
    prompt = _prompt(row["prompt"])
    if all(_is_whole(row[key]) for key in ("chosen", "rejected")):  # some sets write the prompt before each answer
        whole = _implicit(row)
        if prompt_key(whole.prompt[-1]["content"]) != prompt_key(prompt[-1]["content"]):
            raise RowProblem("chosen and rejected are conversations that do not begin with the prompt; repair the row")
        return replace(whole, format=PROMPTED)
    return Judgement(PROMPTED, prompt, ((completion_of(row["chosen"], "chosen"), _rejected(row)),))


def _rejected(row: Row) -> list[Message]:
    return completion_of(row["rejected"], "rejected")


def _is_whole(value: object) -> bool:
    """Whether an answer is a conversation with its prompt."""
    return is_messages(value) and messages_of(value, "chosen")[0]["role"] != ASSISTANT


def _prompt(value: object) -> list[Message]:
    """A prompt as messages; one that is a transcript keeps its turns."""
    if isinstance(value, str) and value.lstrip().startswith("Human:") and value.rstrip().endswith("Assistant:"):
        return _unlearned(_turns(value.rstrip().removesuffix("Assistant:"), "prompt"))
    return prompt_of(value)


def _same(left: Message, right: Message) -> bool:
    return turns_key([left]) == turns_key([right])


def _implicit(row: Row) -> Judgement:
    chosen, rejected = (messages_of(row[key], key) for key in ("chosen", "rejected"))
    shared = _shared_length(chosen, rejected, _same)
    if shared == len(chosen) == len(rejected):
        shared = max((place for place in range(shared) if chosen[place]["role"] == ASSISTANT), default=0)
    elif shared == min(len(chosen), len(rejected)):
        raise RowProblem("chosen and rejected are the same conversation, and one goes on; repair the row")
    elif {chosen[shared]["role"], rejected[shared]["role"]} != {ASSISTANT}:
        raise RowProblem(f"{_PROMPTS_DIFFER}; repair the row")
    if shared == 0:
        raise RowProblem("chosen and rejected share no prompt; add the key prompt, or repair the row")
    return Judgement(IMPLICIT, _unlearned(chosen[:shared]), ((chosen[shared:], rejected[shared:]),))


def _shared_length(left: Sequence[Any], right: Sequence[Any], is_same: Callable[[Any, Any], bool] = eq) -> int:
    """How many items two sequences begin with alike."""
    shorter = min(len(left), len(right))
    return next((place for place in range(shorter) if not is_same(left[place], right[place])), shorter)


def _unlearned(messages: Sequence[Message]) -> list[Message]:
    return [{**message, "train": False} if message["role"] == ASSISTANT else message for message in messages]


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two transcripts share, up to their last `Assistant:`, and the two answers as they are written.

    Raises:
        RowProblem: They share no such prompt.
    """
    shared = chosen[: _shared_length(chosen, rejected)]
    end = shared.rfind(_ASSISTANT)
    if end < 0 or shared.rfind(_HUMAN) > end:
        raise RowProblem(f"{_PROMPTS_DIFFER}; repair the row, or add the key prompt where these are answers alone")
    end += len(_ASSISTANT)
    return chosen[:end], chosen[end:], rejected[end:]


def _transcripts(row: Row) -> Judgement:
    texts = [_begun(content_text(row[key], key)) for key in ("chosen", "rejected")]
    prompt, chosen, rejected = split_transcripts(texts[0], texts[1])
    both = [_turns(f"{_ASSISTANT}{text}", key) for text, key in ((chosen, "chosen"), (rejected, "rejected"))]
    messages = _unlearned(_turns(prompt.removesuffix(_ASSISTANT), "chosen"))
    return Judgement(TRANSCRIPTS, messages, ((both[0], both[1]),))


def _begun(text: str) -> str:
    """A transcript with the blank line before its first turn."""
    return f"\n\n{text.lstrip()}"


def _turns(transcript: str, key: str) -> list[Message]:
    """The turns of a transcript; the blanks around a turn are the transcript's."""
    before, *parts = _TURN.split(_begun(transcript))
    if before.strip() or not parts:
        raise RowProblem(f"{key} is a text that does not begin with Human:; add the key prompt, or repair the row")
    return [
        {"role": USER, "content": text.strip()}
        if speaker == "Human"
        else {"role": ASSISTANT, "content": text.strip(), "train": None}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _ranked(row: Row) -> Judgement:
    if "ranked" not in row:
        demanded(row, ("responses", "scores"), RANKED, row)
    key = "ranked" if "ranked" in row else "responses"
    answers = [completion_of(item, f"{key}: answer {number}") for number, item in _numbered(row[key], key)]
    if len(answers) > _MOST_RANKED:
        raise RowProblem(f"{key} has {len(answers):,} answers; at most {_MOST_RANKED} are compared with each other")

    scores = _scores(row["scores"], len(answers)) if "scores" in row else [-float(i) for i in range(len(answers))]
    order = sorted(range(len(answers)), key=lambda place: -scores[place])
    pairs = tuple(
        (answers[better], answers[worse])
        for better, worse in itertools.combinations(order, 2)
        if scores[better] > scores[worse]  # a tie says nothing
    )
    return Judgement(RANKED, _prompt(row["prompt"]), pairs)


def _numbered(value: object, key: str) -> list[tuple[int, object]]:
    return list(enumerate(parsed_list(value, key), start=1))


def _scores(value: object, count: int) -> list[float]:
    scores = parsed_list(value, "scores")
    if len(scores) != count:
        raise RowProblem(f"scores has {len(scores)} numbers, and there are {count} answers; repair the row")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise RowProblem(f"scores holds {kind_of(score)} {score!r}, which is no finite number; repair the row")
    return [float(score) for score in scores]


def _labelled(row: Row) -> Judgement:
    label = row["label"]
    if not isinstance(label, str | bool | int | float):
        raise RowProblem(f"label is {kind_of(label)}; write true or false, or a word that labels of the source names")
    return Judgement(
        LABELLED,
        _prompt(row["prompt"]),
        label=label_word(label),
        answer=completion_of(row["completion"], "completion"),
    )


_PARSERS: dict[str, Callable[[Row], Judgement]] = {
    PROMPTED: _prompted,
    IMPLICIT: _implicit,
    TRANSCRIPTS: _transcripts,
    RANKED: _ranked,
    LABELLED: _labelled,
}
_KEYS: dict[str, tuple[str, ...]] = {
    PROMPTED: ("prompt", "chosen", "rejected"),
    IMPLICIT: ("chosen", "rejected"),
    TRANSCRIPTS: ("chosen", "rejected"),
    RANKED: ("prompt",),
    LABELLED: ("prompt", "completion", "label"),
}
