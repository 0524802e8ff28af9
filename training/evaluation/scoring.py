"""Likelihoods: of held-out text, of answers to questions, of preferred answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from training.evaluation.models import LoadedModel

Nats = npt.NDArray[np.float64]
# Logits of one forward pass in float32: 64 MiB. Larger passes are no faster on a CPU and only cost memory.
_LOGITS = 16 * 2**20
# A model that has learnt a language finds its sentences far likelier than a uniform guess does; the mean loss of an
# untrained one is never better than that guess, and few of its tokens' scores are.
LEARNT_NATS = 0.5
_PASSAGE = 1024
_LINE = 256  # characters, at most 4 bytes each: a longer line is cut
_BEGINNING = 120
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


def score(loaded: LoadedModel, spans: Sequence[Span], batch: int, context: int) -> list[Likelihood]:
    """Log-likelihood of every span; see `score_tokens`."""
    return [Likelihood(float(np.sum(found)), len(found)) for found in score_tokens(loaded, spans, batch, context)]


@torch.inference_mode()
def score_tokens(loaded: LoadedModel, spans: Sequence[Span], batch: int, context: int) -> list[Nats]:
    """Log-likelihood of every scored token of every span.

    Rows are padded on the right: under causal attention what follows a token cannot change its score, so no mask is
    needed. A span longer than `context` loses the oldest given tokens, then the last scored ones.

    Args:
        loaded: The model.
        spans: What to score.
        batch: Most rows of one forward pass.
        context: Most tokens of a row.

    Returns:
        float64 [scored tokens] per span, in the same order.
    """
    rows = [_cut(span, context) for span in spans]
    results: dict[int, Nats] = {}
    for indices in _batches([len(row.given) + len(row.scored) - 1 for row in rows], batch, loaded.vocabulary):
        for index, nats in zip(indices, _forward(loaded, [rows[i] for i in indices]), strict=True):
            results[index] = nats
    return [results[index] for index in range(len(rows))]


def _cut(span: Span, context: int) -> Span:
    scored = span.scored[:context]
    return Span(span.given[-max(1, context + 1 - len(scored)) :], scored)


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


def _forward(loaded: LoadedModel, spans: Sequence[Span]) -> list[Nats]:
    longest = max(len(span.given) + len(span.scored) for span in spans) - 1
    tokens = torch.full((len(spans), longest + 1), loaded.stops[0], dtype=torch.long)
    for row, span in enumerate(spans):
        whole = [*span.given, *span.scored]
        tokens[row, : len(whole)] = torch.tensor(whole)
    tokens = tokens.to(loaded.device)
    logits = loaded.model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    targets = tokens[:, 1:, None]
    found = (logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)).double().cpu().numpy()
    return [found[row, len(span.given) - 1 : len(span.given) + len(span.scored) - 1] for row, span in enumerate(spans)]


def windows(loaded: LoadedModel, text: str, context: int) -> list[Span]:
    """A document cut into windows in which every token is scored exactly once.

    The document is tokenized without special tokens and preceded by <|endoftext|>. Windows do not overlap: each takes
    the last token of the one before as its start, so a token sees half a context of its document on average. That
    overstates the loss a little against overlapping windows, equally for all models, at half the cost.
    """
    tokens = [loaded.start, *loaded.encode(text)]
    return [Span(tokens[at : at + 1], tokens[at + 1 : at + 1 + context]) for at in range(0, len(tokens) - 1, context)]


@dataclass(frozen=True)
class TextScore:
    """The score of a passage, or of several.

    Attributes:
        nats: Loss of all its tokens.
        begins: How a passage begins.
    """

    nats: float
    tokens: int
    bytes: int
    begins: str = ""


def score_texts(loaded: LoadedModel, texts: Sequence[str], batch: int, context: int) -> list[dict[int, TextScore]]:
    """Loss of every passage of every document, by the character that it begins with; see `passages`.

    A document is scored as a whole, and a token counts for the passage that it begins in. Sums over the passages are
    those of the document, whatever the tokenizer. An empty text has no passages.
    """
    cut = [windows(loaded, text, context) for text in texts]
    found = iter(score_tokens(loaded, [span for spans in cut for span in spans], batch, context))
    return [_by_passage(loaded, text, [next(found) for _ in spans]) for text, spans in zip(texts, cut, strict=True)]


def _by_passage(loaded: LoadedModel, text: str, nats: Sequence[Nats]) -> dict[int, TextScore]:
    if not nats:
        return {}
    begins = np.array([start for start, _ in loaded.offsets(text)])
    place = np.searchsorted(passages(text), begins, side="right") - 1
    used = np.unique(place)  # one without a token of its own joins the one before
    edges = [0, *np.array(passages(text))[used[1:]].tolist(), len(text)]
    losses = -np.concatenate(nats)
    return {
        start: TextScore(
            math.fsum(losses[place == number]),
            int(np.sum(place == number)),
            len(text[start:end].encode()),
            text[start : min(end, start + _BEGINNING)],
        )
        for number, start, end in zip(used, edges[:-1], edges[1:], strict=True)
    }


def passages(text: str) -> list[int]:
    """Where passages of at most a kilobyte begin: at the ends of lines where there are some.

    They are the items of everything that is measured on text, so that a few long documents give enough of them. They
    depend on the text alone. Passages of one document are alike: an interval over passages says how certain a figure is
    for these documents. Over other documents of the same kind it scatters more (tiny: 0.02 bits per byte, and 0.08).
    """
    starts, at, size = [0], 0, 0
    for line in text.splitlines(keepends=True):
        for piece in (line[start : start + _LINE] for start in range(0, len(line), _LINE)):
            length = len(piece.encode())
            if size and size + length > _PASSAGE:
                starts.append(at)
                size = 0
            at, size = at + len(piece), size + length
    return starts


def total(scores: Sequence[TextScore]) -> TextScore:
    """All passages as one."""
    return TextScore(
        math.fsum(score.nats for score in scores),
        sum(score.tokens for score in scores),
        sum(score.bytes for score in scores),
    )


def score_answers(
    loaded: LoadedModel, pairs: Sequence[tuple[str, str]], chat: bool, batch: int, context: int
) -> list[Likelihood]:
    """Log-likelihood of each answer after its prompt."""
    return score(
        loaded,
        [Span(loaded.prompt(prompt, chat), loaded.answer(answer, chat)) for prompt, answer in pairs],
        batch,
        context,
    )
