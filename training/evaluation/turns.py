"""Likelihoods of the learned turns of conversations, each scored as training learns it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from training.data.conversations.chat_format import Conversation, RowRefused
from training.data.conversations.template_process import TemplateRefused
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Likelihood, Span, score_tokens

_SHOWN_REASONS = 3


def score_turns(
    loaded: LoadedModel, conversations: Sequence[Conversation], batch: int, context: int
) -> list[Likelihood | str]:
    """Log-likelihood of all learned tokens of each conversation, or the reason why there is none.

    A conversation is rendered once, as a whole. A learned token is scored after everything that stands before it. A
    conversation that is longer than the context is never cut.

    Args:
        loaded: The model.
        conversations: What to score.
        batch: Most rows of one forward pass.
        context: Most tokens of a row.
    """
    if not loaded.has_chat_format:
        return ["the model has no chat template"] * len(conversations)
    try:
        rows = loaded.chat_format.encode_each(conversations)
    except TemplateRefused as error:
        return [str(error)] * len(conversations)

    results: dict[int, Likelihood | str] = {}
    spans: dict[int, Span] = {}
    learned: dict[int, np.ndarray] = {}
    for number, row in enumerate(rows):
        if isinstance(row, RowRefused):
            results[number] = str(row)
        elif len(row.ids) > context:
            results[number] = f"longer than the context of {context:,} tokens"
        elif not row.learned[1:].any():
            results[number] = "none of its turns is learned"
        else:
            first = 1 + int(np.argmax(row.learned[1:]))
            spans[number] = Span(row.ids[:first].tolist(), row.ids[first:].tolist())
            learned[number] = row.learned[first:]

    scores = score_tokens(loaded, list(spans.values()), batch, context)
    for number, nats in zip(spans, scores, strict=True):
        chosen = nats[learned[number]]
        results[number] = Likelihood(math.fsum(chosen), len(chosen))
    return [results[number] for number in range(len(rows))]


def reasons_in_words(reasons: Iterable[str]) -> str:
    """Reasons with their numbers, the commonest first."""
    counts = Counter(reasons)
    shown = [f"{count:,} {reason}" for reason, count in counts.most_common(_SHOWN_REASONS)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_SHOWN_REASONS))
    return "; ".join([*shown, *([f"{rest:,} for other reasons"] if rest else [])])
