"""Conversations as the token sequences that a training learns from: each fits into a row, and none is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.conversations.chat_format import ChatFormat, Conversation, Encoded, check, total_notes
from training.data.conversations.fitting import fit
from training.data.conversations.lessons import conversation_of, is_plain_text
from training.data.conversations.template_probe import features_of, probe_template
from training.errors import InputRefused, RecipeError
from training.specs.post_training import TooLong


@dataclass(frozen=True)
class LeftOut:
    """What was left out because it is longer than the context.

    Attributes:
        kind: What is counted, `conversations` or `pairs`.
        count: How many were left out.
        of: How many there were.
    """

    kind: str
    count: int
    of: int

    @property
    def share(self) -> float:
        """Share of all that was left out."""
        return self.count / self.of

    @property
    def metrics(self) -> dict[str, float]:
        """The two metrics of a stage, such as `dropped_pairs` and `dropped_pairs_share`."""
        return {f"dropped_{self.kind}": float(self.count), f"dropped_{self.kind}_share": self.share}


@dataclass(frozen=True)
class EncodedRows:
    """Training conversations as token sequences that fit into a row each.

    Attributes:
        sequences: Token ids, int64 [2 to the context] each.
        masks: Which tokens are learned, bool [length] each.
        numbers: Which of the rows each one comes from; a plain text may give several.
        left_out: What was left out.
        counts: What the chat format and the context changed, in words to how often.
    """

    sequences: list[np.ndarray]
    masks: list[np.ndarray]
    numbers: list[int]
    left_out: LeftOut
    counts: Mapping[str, int]


def encode_rows(
    chat_format: ChatFormat,
    rows: Sequence[Mapping[str, Any]],
    file: str,
    context: int,
    embedding: int | None,
    log: Callable[[str], None],
    too_long: TooLong = "turns",
) -> EncodedRows:
    """Encode rows, each checked to teach what it should.

    A conversation that was generated and is too long is left out. One of the recipe's own that is too long follows the
    recipe's rule; by `turns` it is left out where its last question and answer are too long. A plain text has no
    template around it and goes on in further rows.

    Args:
        chat_format: How conversations become token ids.
        rows: With columns of `CONVERSATION_SCHEMA` or `MIXED_CONVERSATION_SCHEMA`.
        file: Names rows in messages that nothing else names.
        context: Tokens per row.
        embedding: Number of token ids that the model has; None for any.
        log: Called with a line when something is changed or left out.
        too_long: The rule of the recipe.

    Raises:
        TemplateRefused: The chat format loses what conversations hold.
        RowRefused: One cannot be encoded, teaches something else than its chosen turns, or is refused as too long.
        InputRefused: One holds a token that the model does not have.
        RecipeError: None fits.
    """
    conversations = [conversation_of(row, file) for row in rows]
    texts = [number for number, row in enumerate(rows) if is_plain_text(row)]
    generated = [number for number, row in enumerate(rows) if not row.get("format")]
    own = sorted(set(range(len(rows))) - {*texts, *generated})

    if len(texts) < len(rows):
        probe_template(chat_format, features_of(conversations[number] for number in sorted({*generated, *own})))
    encoded, counts = _encode_own(chat_format, conversations, own, context, too_long)
    encoded |= _encode_generated(chat_format, conversations, generated)
    for number in texts:
        encoded[number] = chat_format.encode_text(str(conversations[number].messages[0]["content"]), end=True)
    counts = {name.replace("_", " "): count for name, count in total_notes(list(encoded.values())).items()} | counts
    if changed := {name: count for name, count in counts.items() if count}:
        log("conversations: " + ", ".join(f"{count} {name}" for name, count in changed.items()))
    if embedding is not None:
        for number, row in encoded.items():
            refuse_unknown_ids(row.ids, embedding, conversations[number].named)

    pieces: list[tuple[int, np.ndarray, np.ndarray]] = []
    for number in sorted(encoded):
        row = encoded[number]
        if is_plain_text(rows[number]):
            parts = pieces_of(row.ids[row.learned], chat_format.before_document, context)
            pieces += [(number, part, np.arange(len(part)) > 0) for part in parts]  # the first token is given
        else:
            pieces.append((number, row.ids, row.learned))
    kept = [piece for piece in pieces if len(piece[1]) <= context]
    if not kept:
        raise RecipeError(f"no conversation fits into the context of {context} tokens; raise context")
    longer = len(pieces) - len(kept)
    if longer:
        log(f"{longer} of {len(rows)} conversations are longer than the context of {context} tokens and are left out")

    left_out = LeftOut("conversations", longer + len(rows) - len(encoded), len(rows))
    numbers, sequences, masks = (list(part) for part in zip(*kept, strict=True))
    return EncodedRows(sequences, masks, numbers, left_out, counts)


def refuse_unknown_ids(ids: np.ndarray, embedding: int, where: str) -> None:
    """See that the model has a row for every token of a sequence.

    Raises:
        InputRefused: It has not.
    """
    highest = int(ids.max(initial=0))
    if highest >= embedding:
        raise InputRefused(
            f"{where}: the token {highest} lies outside the model's embedding of {embedding} tokens; the tokenizer and "
            "the model do not belong together"
        )


def pieces_of(document: np.ndarray, before: int, context: int) -> list[np.ndarray]:
    """A document as sequences that fit into a row; each begins with the last token of the one before.

    That token is given and not learned, so every token of the document is learned once.

    Args:
        document: Token ids, int64 [length].
        before: Id of the token before a document.
        context: Tokens per row.

    Returns:
        int64 [2 to `context`] each; without their first tokens they make up the document.
    """
    whole = np.concatenate([[before], document]).astype(np.int64)
    return [whole[start : start + context] for start in range(0, len(document), context - 1)]


def _encode_generated(
    chat_format: ChatFormat, conversations: Sequence[Conversation], numbers: Sequence[int]
) -> dict[int, Encoded]:
    chosen = [conversations[number] for number in numbers]
    encoded = chat_format.encode(chosen)
    for conversation, row in zip(chosen, encoded, strict=True):
        check(chat_format, conversation, row)
    return dict(zip(numbers, encoded, strict=True))


def _encode_own(
    chat_format: ChatFormat, conversations: Sequence[Conversation], numbers: Sequence[int], context: int, rule: TooLong
) -> tuple[dict[int, Encoded], dict[str, int]]:
    """The conversations with these numbers that fit, and what happened to the others."""
    if not numbers:
        return {}, {}
    fitted = fit(chat_format, [conversations[number] for number in numbers], context, rule)
    for conversation, row in zip(fitted.conversations, fitted.encoded, strict=True):
        check(chat_format, conversation, row)

    counts = {
        "lost their first turns to fit": fitted.counts["shortened"],
        "longer than the context and left out": fitted.counts["too_long"],
        "left out because no turn that is learned fits": fitted.counts["nothing_learned"],
    }
    return {numbers[place]: row for place, row in zip(fitted.numbers, fitted.encoded, strict=True)}, counts
