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
# A model that has learnt a language finds its sentences far likelier than a uniform guess does. An untrained one is
# better than that guess on few tokens, and never on average.
LEARNT_NATS = 0.5
_PASSAGE = 1024  # bytes
_LINE = 256  # characters, at most 4 bytes each: a longer line is cut
_BEGINNING = 120  # characters of a passage that its item shows
# Scores of the same tokens in two batches differ in the last bits of a float32 sum. Scores closer than this are a tie.
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
    """Whether tokens are likelier, by half a nat each on average, than a uniform guess makes them.

    Args:
        nats: Their log-likelihood.
        tokens: Their number.
        vocabulary: Number of tokens that a guess chooses from.
    """
    return nats / tokens >= LEARNT_NATS - math.log(vocabulary)


def score(loaded: LoadedModel, spans: Sequence[Span], batch: int, context: int) -> list[Likelihood]:
    """Log-likelihood of every span, in the same order; see `score_tokens`."""
    return [Likelihood(float(np.sum(nats)), len(nats)) for nats in score_tokens(loaded, spans, batch, context)]


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
        Natural logarithms, float64 [scored tokens] per span, in the same order.
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
    """Log-likelihoods of the scored tokens of each span, float64 [scored tokens], in one forward pass."""
    longest = max(len(span.given) + len(span.scored) for span in spans) - 1
    tokens = torch.full((len(spans), longest + 1), loaded.stops[0], dtype=torch.long)
    for row, span in enumerate(spans):
        whole = [*span.given, *span.scored]
        tokens[row, : len(whole)] = torch.tensor(whole)
    tokens = tokens.to(loaded.device)

    logits = loaded.model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    targets = tokens[:, 1:, None]
    nats = (logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)).double().cpu().numpy()
    return [nats[row, len(span.given) - 1 : len(span.given) + len(span.scored) - 1] for row, span in enumerate(spans)]


def windows(loaded: LoadedModel, text: str, context: int) -> list[Span]:
    """A document cut into windows in which every token is scored exactly once.

    The document is tokenized without special tokens and preceded by <|endoftext|>. Windows do not overlap: each begins
    with the last token of the one before, so a token sees half a context of its document on average. With windows that
    overlap, the loss of every model would be slightly lower, at twice the cost.
    """
    tokens = [loaded.start, *loaded.encode(text)]
    starts = range(0, len(tokens) - 1, context)
    return [Span(tokens[start : start + 1], tokens[start + 1 : start + 1 + context]) for start in starts]


@dataclass(frozen=True)
class TextScore:
    """The score of a passage, or of several.

    Attributes:
        nats: Loss, summed over all its tokens.
        tokens: Their number.
        bytes: Of UTF-8.
        begins: The passage's first characters; empty for several passages.
    """

    nats: float
    tokens: int
    bytes: int
    begins: str = ""


def score_texts(loaded: LoadedModel, texts: Sequence[str], batch: int, context: int) -> list[dict[int, TextScore]]:
    """Loss of every passage of every document; see `passages`.

    A document is scored as a whole, and a token counts for the passage that it begins in. Sums over the passages are
    those of the document, whatever the tokenizer.

    Args:
        loaded: The model.
        texts: The documents.
        batch: Most rows of one forward pass.
        context: Most tokens of a row.

    Returns:
        Per document, the number of a passage's first character to its score. An empty text has no passages.
    """
    windows_of = [windows(loaded, text, context) for text in texts]
    nats = iter(score_tokens(loaded, [span for spans in windows_of for span in spans], batch, context))
    return [
        _by_passage(loaded, text, [next(nats) for _ in spans]) for text, spans in zip(texts, windows_of, strict=True)
    ]


def _by_passage(loaded: LoadedModel, text: str, nats: Sequence[Nats]) -> dict[int, TextScore]:
    if not nats:
        return {}

    token_starts = np.array([start for start, _ in loaded.offsets(text)])
    passage_of = np.searchsorted(passages(text), token_starts, side="right") - 1
    used = np.unique(passage_of)  # a passage in which no token begins joins the one before
    edges = [0, *np.array(passages(text))[used[1:]].tolist(), len(text)]
    losses = -np.concatenate(nats)

    scores: dict[int, TextScore] = {}
    for passage, start, end in zip(used, edges[:-1], edges[1:], strict=True):
        inside = passage_of == passage
        scores[start] = TextScore(
            nats=math.fsum(losses[inside]),
            tokens=int(np.sum(inside)),
            bytes=len(text[start:end].encode()),
            begins=text[start : min(end, start + _BEGINNING)],
        )
    return scores


def passages(text: str) -> list[int]:
    """The characters at which passages of at most a kilobyte begin: at the beginnings of lines where there are some.

    Passages are the items of everything that is measured on text, so that a few long documents give enough items. They
    depend on the text alone. Passages of one document are alike: an interval over passages says how certain a figure is
    for these documents. Over other documents of the same kind it scatters more (tiny: 0.02 bits per byte, and 0.08).
    """
    starts, position, size = [0], 0, 0
    for line in text.splitlines(keepends=True):
        for piece in (line[start : start + _LINE] for start in range(0, len(line), _LINE)):
            piece_bytes = len(piece.encode())
            if size and size + piece_bytes > _PASSAGE:
                starts.append(position)
                size = 0
            position, size = position + len(piece), size + piece_bytes
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
    """Log-likelihood of each answer after its prompt.

    Args:
        loaded: The model.
        pairs: Prompts and answers.
        chat: Put them through the chat template.
        batch: Most rows of one forward pass.
        context: Most tokens of a row.
    """
    spans = [Span(*loaded.answered(prompt, answer, chat)) for prompt, answer in pairs]
    return score(loaded, spans, batch, context)
