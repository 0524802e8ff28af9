"""Likelihoods: of held-out text, of answers to questions, of preferred answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.evaluation.models import LoadedModel

# Logits of one forward pass in float32: 64 MiB. Larger passes are no faster on a CPU and only cost memory.
_LOGITS = 16 * 2**20
# A model that has learnt a language finds its sentences far likelier than a uniform guess does; the mean loss of an
# untrained one is never better than that guess, and few of its tokens' scores are.
LEARNT_NATS = 0.5
# Scores of the same tokens in two batches differ in the last bits of a float32 sum; what is closer than this is a tie.
TIE_NATS = 1e-5


@dataclass(frozen=True)
class Span:
    """Tokens to be scored after tokens that are given; neither is empty."""

    given: Sequence[int]
    scored: Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a span.

    Attributes:
        nats: Natural logarithm of the probability of all scored tokens.
        tokens: How many were scored.
    """

    nats: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Mean log-likelihood of a token, in nats."""
        return self.nats / self.tokens

    def learnt(self, vocabulary: int) -> bool:
        """Whether the tokens are likelier, by half a nat each on average, than a uniform guess makes them."""
        return learnt(self.nats, self.tokens, vocabulary)


def learnt(nats: float, tokens: int, vocabulary: int) -> bool:
    """Whether tokens of this log-likelihood are likelier, by half a nat each on average, than a uniform guess."""
    return nats / tokens >= LEARNT_NATS - math.log(vocabulary)


@torch.inference_mode()
def score(loaded: LoadedModel, spans: Sequence[Span], batch: int, context: int) -> list[Likelihood]:
    """Log-likelihood of every span.

    Rows are padded on the right: under causal attention what follows a token cannot change its score, so no mask is
    needed. A span longer than `context` loses the oldest given tokens, then the last scored ones.

    Args:
        loaded: The model.
        spans: What to score.
        batch: Most rows of one forward pass.
        context: Most tokens of a row.

    Returns:
        One result per span, in the same order.
    """
    rows = [_cut(span, context) for span in spans]
    results: list[Likelihood | None] = [None] * len(rows)
    for indices in _batches([len(row.given) + len(row.scored) - 1 for row in rows], batch, loaded.vocabulary):
        for index, nats in zip(indices, _forward(loaded, [rows[i] for i in indices]), strict=True):
            results[index] = Likelihood(nats, len(rows[index].scored))
    return [result for result in results if result is not None]


def _cut(span: Span, context: int) -> Span:
    scored = span.scored[:context]
    return Span(span.given[-max(1, context + 1 - len(scored)):], scored)


def _batches(lengths: Sequence[int], batch: int, vocabulary: int) -> Iterator[list[int]]:
    """Indices of rows of like length, longest first, within the limits of rows and of logits."""
    waiting: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[waiting[0]] if waiting else lengths[index]
        if waiting and (len(waiting) == batch or (len(waiting) + 1) * longest * vocabulary > _LOGITS):
            yield waiting
            waiting = []
        waiting.append(index)
    if waiting:
        yield waiting


def _forward(loaded: LoadedModel, spans: Sequence[Span]) -> list[float]:
    longest = max(len(span.given) + len(span.scored) for span in spans) - 1
    tokens = torch.full((len(spans), longest + 1), loaded.stops[0], dtype=torch.long)
    for row, span in enumerate(spans):
        whole = [*span.given, *span.scored]
        tokens[row, :len(whole)] = torch.tensor(whole)
    tokens = tokens.to(loaded.device)
    logits = loaded.model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    targets = tokens[:, 1:, None]
    found = (logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)).double().cpu().numpy()
    return [float(np.sum(found[row, len(span.given) - 1:len(span.given) + len(span.scored) - 1]))
            for row, span in enumerate(spans)]


def windows(loaded: LoadedModel, text: str, context: int) -> list[Span]:
    """A document cut into windows in which every token is scored exactly once.

    The document is tokenized without special tokens and preceded by <|endoftext|>. Windows do not overlap: each takes
    the last token of the one before as its start, so a token sees half a context of its document on average. That
    overstates the loss a little against overlapping windows, equally for all models, at half the cost.
    """
    tokens = [loaded.start, *loaded.encode(text)]
    return [Span(tokens[at:at + 1], tokens[at + 1:at + 1 + context]) for at in range(0, len(tokens) - 1, context)]


@dataclass(frozen=True)
class TextScore:
    """A document's score."""

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per UTF-8 byte."""
        return self.nats / math.log(2) / self.bytes


def score_texts(loaded: LoadedModel, texts: Sequence[str], batch: int, context: int) -> list[TextScore]:
    """Loss of every document, in nats; an empty text has no tokens and no loss."""
    cut = [windows(loaded, text, context) for text in texts]
    found = iter(score(loaded, [span for spans in cut for span in spans], batch, context))
    scores = []
    for text, spans in zip(texts, cut, strict=True):
        parts = [next(found) for _ in spans]
        scores.append(TextScore(-math.fsum(part.nats for part in parts), sum(part.tokens for part in parts),
                                len(text.encode())))
    return scores


def total(scores: Sequence[TextScore]) -> TextScore:
    """All documents as one."""
    return TextScore(math.fsum(score.nats for score in scores), sum(score.tokens for score in scores),
                     sum(score.bytes for score in scores))


def score_answers(loaded: LoadedModel, pairs: Sequence[tuple[str, str]], chat: bool, batch: int,
                  context: int) -> list[Likelihood]:
    """Log-likelihood of each answer after its prompt."""
    return score(loaded, [Span(loaded.prompt(prompt, chat), loaded.answer(answer, chat)) for prompt, answer in pairs],
                 batch, context)


def right_choice(choices: Sequence[Likelihood], priors: Sequence[float], answer: int, vocabulary: int) -> bool:
    """Whether the question makes the right choice likelier than it makes the others, and the choice is likely at all.

    The likelihood of each choice is taken against its own after other questions (domain-conditional pointwise mutual
    information, Holtzman et al., 2021), so that a choice does not win by being a common sentence. A tie counts as
    wrong, and so does a right choice that the model finds hardly likelier than a uniform guess: what an untrained model
    picks is chance.

    Args:
        choices: After the question.
        priors: Mean nats per token of each choice after other questions.
        answer: Index of the right choice.
        vocabulary: Number of tokens.
    """
    gains = [choice.per_token - prior for choice, prior in zip(choices, priors, strict=True)]
    return choices[answer].learnt(vocabulary) and all(
        gains[answer] > gain + TIE_NATS for index, gain in enumerate(gains) if index != answer)
