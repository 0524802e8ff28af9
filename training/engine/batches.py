"""Micro-batches as a pure function of the step: nothing to replay on resume, nothing skipped or repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from training.data.tokens.packing import IGNORE
from training.data.tokens.passes import Keep, PhaseRows, read_in_phases
from training.data.tokens.shards import TokenReader

Batch = dict[str, torch.Tensor]
SOURCE_TOKENS = "source_tokens"
"""Key of a micro-batch: tokens that are learned from each source, int64 [sources]; no input of the model."""
SHARE = "share/"
"""How the metric of one source's share of the tokens begins."""


class Batches(Protocol):
    """The data of a whole training run."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step."""

    @property
    def micro_tokens(self) -> int:
        """Most tokens per rank and forward pass, padding included."""

    def smaller(self) -> int | None:
        """Tokens of the next smaller micro-batch, half of this one where that divides the batch; None at one row."""

    def micro_batch(self, step: int, micro: int, rank: int) -> Batch:
        """One rank's inputs of one forward pass: tensors of shape [rows, context].

        Steps may lie beyond the last one: the data goes on for ever.
        """

    def tokens_before(self, step: int) -> int:
        """Tokens that all ranks together have seen when a step begins."""

    def longest(self, pad: int | None = None) -> Batch:
        """A micro-batch as large as any of the run.

        Args:
            pad: Id in the places of padding, the run's own without one. That one may be a model's end of a turn, so
                padding cannot be told by it.
        """


@dataclass(frozen=True)
class Segment:
    """Steps that share a context length.

    Attributes:
        first: First step.
        end: The step after the last one.
        rows: What the steps read.
    """

    first: int
    end: int
    rows: PhaseRows


Make = Callable[[Keep], tuple[PhaseRows, ...]]


def in_memory(make: Make) -> tuple[PhaseRows, ...]:
    """The phases with plans in memory."""
    return make(lambda packing: packing)


def read_documents(
    documents: Sequence[np.ndarray],
    tokens: TokenReader,
    weights: Sequence[float],
    phases: Sequence[tuple[int, int, int]],
    batch_tokens: int,
    seed: int,
    alone: bool,
    phase_weights: Sequence[Sequence[float]] = (),
    kept: Callable[[Make], tuple[PhaseRows, ...]] = in_memory,
) -> tuple[Segment, ...]:
    """The rows of a whole run; see `passes.read_in_phases`.

    Args:
        documents: Per source, the numbers of its documents, int64 [documents].
        tokens: The documents.
        weights: Sampling weight per source.
        phases: First step, the step after the last one, and the context length of each phase.
        batch_tokens: Tokens per step.
        seed: Seed of the order.
        alone: One document a row.
        phase_weights: For each phase the weight of every source in it, where they change.
        kept: Makes the plans, or finds those that were made; by default they are made in memory.

    Returns:
        One segment per phase that has steps.
    """
    weights_of = [some for some, phase in zip(phase_weights, phases, strict=False) if phase[1] > phase[0]]
    phases = [phase for phase in phases if phase[1] > phase[0]]
    counts = [(context, (end - first) * batch_tokens // context) for first, end, context in phases]

    def make(keep: Keep) -> tuple[PhaseRows, ...]:
        return read_in_phases(documents, tokens.lengths, weights, counts, seed, alone, weights_of, keep)

    read = kept(make)
    return tuple(Segment(first, end, rows) for (first, end, _), rows in zip(phases, read, strict=True))


def share_steps(steps: int, shares: Sequence[float]) -> list[tuple[int, int]]:
    """Divide steps by shares: [first, end) of each part, without gaps; the last part ends with the last step."""
    ends = [round(steps * float(np.sum(shares[: number + 1]))) for number in range(len(shares))]
    ends[-1] = steps
    return list(zip([0, *ends[:-1]], ends, strict=True))


def smaller_divisor(whole: int, part: int) -> int | None:
    """The largest divisor of `whole` that is at most half of `part`, None when `part` is 1."""
    return max((size for size in range(1, part // 2 + 1) if whole % size == 0), default=None)


@dataclass(frozen=True)
class PackedBatches:
    """Batches of rows of documents.

    Documents that share a row are told apart by their position ids. Where a row holds one document, a mask covers the
    padding.

    A batch has the same number of places at every context length. Which rows make up a step does not depend on the
    number of ranks or the micro-batch.

    Attributes:
        segments: The curriculum.
        tokens: Reads the documents' tokens.
        batch_tokens: Tokens per optimizer step of all ranks together, padding included.
        micro_tokens: Tokens per rank and forward pass, padding included.
        pad: Id of the padding token.
        alone: One document a row.
        source: Number of each document's source, integers [documents]; None where sources are not counted.
        sources: Number of sources.
    """

    segments: tuple[Segment, ...]
    tokens: TokenReader
    batch_tokens: int
    micro_tokens: int
    world_size: int
    pad: int
    alone: bool = False
    source: np.ndarray | None = None
    sources: int = 0

    @property
    def efficiency(self) -> float:
        """Share of the run's places that hold a token."""
        shares = [(part.end - part.first) * part.rows.efficiency(self._rows_of(part)) for part in self.segments]
        return sum(shares) / self.steps

    def _rows_of(self, segment: Segment) -> int:
        return (segment.end - segment.first) * self.batch_tokens // segment.rows.context

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.segments[-1].end

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step."""
        return self.batch_tokens // (self.micro_tokens * self.world_size)

    def micro_batch(self, step: int, micro: int, rank: int) -> Batch:
        """`input_ids`, `labels` and `position_ids`, int64 of shape [rows, context].

        With one document a row `attention_mask` takes the place of `position_ids`. Where sources are counted, there is
        `SOURCE_TOKENS` beside them.
        """
        segment = next((part for part in self.segments if step < part.end), self.segments[-1])
        context = segment.rows.context
        count = self.micro_tokens // context

        # In tokens from the segment's first step on. Ranks take turns within a step, so that the rows of a step are the
        # same under every number of ranks.
        first = (step - segment.first) * self.batch_tokens + (micro * self.world_size + rank) * self.micro_tokens
        batch = self._batch(segment.rows, first // context, count, self.pad)
        if self.source is not None:
            of_rows = self.source[segment.rows.first_documents(first // context, count)]  # a row has one source
            learned = (batch["labels"] != IGNORE).sum(1).numpy()
            tokens = np.bincount(of_rows, learned, minlength=self.sources)
            batch[SOURCE_TOKENS] = torch.from_numpy(tokens.astype(np.int64))
        return batch

    def smaller(self) -> int | None:
        """A divisor of the batch in whole rows of every context length."""
        row = math.lcm(*(segment.rows.context for segment in self.segments))
        rows = smaller_divisor(self.batch_tokens // (self.world_size * row), self.micro_tokens // row)
        return rows and rows * row

    def tokens_before(self, step: int) -> int:
        """Tokens of all ranks before a step, padding included."""
        return step * self.batch_tokens

    def longest(self, pad: int | None = None) -> Batch:
        """A micro-batch of the longest context."""
        rows = max((segment.rows for segment in self.segments), key=lambda rows: rows.context)
        return self._batch(rows, 0, self.micro_tokens // rows.context, self.pad if pad is None else pad)

    def _batch(self, rows: PhaseRows, start: int, count: int, pad: int) -> Batch:
        arrays = rows.batch(self.tokens, start, count, pad)
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        if self.alone:
            # Every model counts positions by itself, so they need not be given. They begin at 0 again where the padding
            # begins, and so tell where that is.
            positions = batch.pop("position_ids")
            batch["attention_mask"] = (positions == torch.arange(rows.context)).long()
        return batch


class _MicroSteps(IterableDataset[Batch]):
    def __init__(self, batches: Batches, first_step: int, rank: int) -> None:
        self._batches = batches
        self._first_step = first_step
        self._rank = rank

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._first_step, self._batches.steps):
            for micro in range(self._batches.accumulation):
                yield self._batches.micro_batch(step, micro, self._rank)


def loader(batches: Batches, first_step: int, rank: int) -> DataLoader[Batch]:
    """A loader of one rank's micro-batches that begins at a step."""
    # A generator of its own: an iterator otherwise draws a seed from torch's global one, and a resumed job would see
    # other random numbers (LoRA's dropout) than one that was never stopped.
    return DataLoader(_MicroSteps(batches, first_step, rank), batch_size=None, generator=torch.Generator())
