"""Makes conversations fit a context: whole turns go from the front, or the conversation goes. No answer is ever cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from training.data.conversations.chat_format import ChatFormat, Conversation, Encoded, RowRefused
from training.errors import RecipeError
from training.specs.post_training import TooLong

_INSTRUCTIONS = ("system", "developer")


@dataclass(frozen=True)
class Fitted:
    """Conversations that fit.

    Attributes:
        numbers: Which of the conversations are kept, in their order.
        conversations: The kept ones, without the turns that went.
        encoded: The kept ones.
        counts: `kept` and `shortened` ones, and of those that went `too_long`, `nothing_learned` and `refused`.
        refused: Why conversations were refused.
    """

    numbers: tuple[int, ...]
    conversations: tuple[Conversation, ...]
    encoded: tuple[Encoded, ...]
    counts: Mapping[str, int]
    refused: tuple[RowRefused, ...]


def fit(
    chat_format: ChatFormat,
    conversations: Sequence[Conversation],
    context: int,
    rule: TooLong,
    skip_refused: bool = False,
) -> Fitted:
    """Encode conversations and make them fit.

    Args:
        chat_format: The format.
        conversations: Any number.
        context: Most tokens of one.
        rule: For those that are too long.
        skip_refused: Count conversations that cannot be encoded instead of refusing them.

    Raises:
        RowRefused: A conversation cannot be encoded, or the rule is `refuse` and one is too long.
        RecipeError: None is left.
    """
    results: dict[int, Encoded | RowRefused] = dict(enumerate(chat_format.encode_each(conversations)))
    shortened: dict[int, Conversation] = {}
    if rule == "turns":
        shorter = {number: _shorter(conversations[number]) for number in _too_long(results, context)}
        while shorter:
            tried = {number: next(ways, None) for number, ways in shorter.items()}
            asked = {number: way for number, way in tried.items() if way is not None}
            encoded = zip(asked, chat_format.encode_each(list(asked.values())), strict=True)
            fitting = {number: one for number, one in encoded if isinstance(one, Encoded) and len(one.ids) <= context}
            results |= fitting
            shortened |= {number: asked[number] for number in fitting}
            shorter = {number: shorter[number] for number in asked if number not in fitting}

    counts: Counter[str] = Counter(kept=0, shortened=0, too_long=0, nothing_learned=0, refused=0)
    kept: dict[int, Encoded] = {}
    refused = []
    for number, result in results.items():
        if isinstance(result, RowRefused):
            if not skip_refused:
                raise result
            counts["refused"] += 1
            refused.append(result)
        elif len(result.ids) > context:
            if rule == "refuse":
                raise RowRefused(
                    f"{conversations[number].named}: it has {len(result.ids)} tokens, and the context has {context}"
                )
            counts["too_long"] += 1
        elif not result.learned.any():
            counts["nothing_learned"] += 1
        else:
            kept[number] = result
            counts["kept"] += 1
            counts["shortened"] += number in shortened
    if not kept:
        said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        raise RecipeError(
            f"none of {len(conversations)} conversations fits into the context of {context} tokens with something to "
            f"learn ({said or 'there are none'}); raise the context"
        )
    whole = tuple(shortened.get(number, conversations[number]) for number in kept)
    return Fitted(tuple(kept), whole, tuple(kept.values()), counts, tuple(refused))


def _too_long(results: Mapping[int, Encoded | RowRefused], context: int) -> list[int]:
    return [number for number, one in results.items() if isinstance(one, Encoded) and len(one.ids) > context]


def _shorter(conversation: Conversation) -> Iterator[Conversation]:
    """The conversation without its first turns, fewer each time; instructions stay, and a user's turn comes first."""
    messages = conversation.messages
    first = next((n for n, message in enumerate(messages) if message["role"] not in _INSTRUCTIONS), len(messages))
    for number in range(first + 1, len(messages)):
        if messages[number]["role"] == "user":
            yield Conversation([*messages[:first], *messages[number:]], conversation.tools, conversation.where)
