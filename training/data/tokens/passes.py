"""The rows of a training run: each source is one stream of documents, cut where the phases of the curriculum meet.

The stream goes through all documents of its source, pass after pass, each in an order of its own. A phase packs its
stretch of the stream for its own context length. Whole passes share one plan of all documents. A part of a pass is
packed by itself, with just as many tokens as fill the phase's rows. So no token is read a second time before all tokens
of its source have been read once, whatever the contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.tokens.order import RowOrder, key_of, shuffled
from training.data.tokens.packing import Packing, PackingPlan, Spans, plan, rows, size_of_plan, whole
from training.data.tokens.shards import Int64, TokenReader

_DOCUMENTS_KEY = 0xD0C5
_PHASES_KEY = 0x9A5E
Keep = Callable[[PackingPlan], Packing]


@dataclass(frozen=True)
class Portion:
    """Rows of one plan, read in a shuffled order.

    Attributes:
        first: Rows of the source that the phase reads before these.
        packing: The plan.
        key: Key of the shuffled order, see `shuffled`.
        epoch: Number of the first pass over the plan; each pass has another order.
    """

    first: int
    packing: Packing
    key: int
    epoch: int


@dataclass(frozen=True)
class PhaseRows:
    """The rows that one phase of the curriculum reads.

    Attributes:
        context: Tokens per row.
        order: Which source is read when.
        portions: Per source, its portions in the order of reading; the last one is read over and over.
    """

    context: int
    order: RowOrder
    portions: tuple[tuple[Portion, ...], ...]

    def batch(self, tokens: TokenReader, start: int, count: int, pad: int) -> dict[str, Int64]:
        """The phase's rows `start` to `start + count - 1` as a batch; see `packing.rows`.

        Args:
            tokens: The documents.
            start: Number of the first row.
            count: Number of rows.
            pad: Token id at unused places.

        Returns:
            `input_ids`, `labels` and `position_ids`, int64 [count, context] each.
        """
        parts: dict[str, Int64] = {}
        for packing, row, chosen in self.places(start, count):
            for name, values in rows(packing, tokens, row, pad).items():
                parts.setdefault(name, np.empty((count, self.context), np.int64))[chosen] = values
        return parts

    def places(self, start: int, count: int) -> Iterator[tuple[Packing, Int64, Int64]]:
        """Where the phase's rows `start` to `start + count - 1` lie.

        Yields:
            A plan, numbers of its rows, int64 [n], and their places among the `count`, int64 [n].
        """
        source, nth = self.order.turns(start, count)
        for number in np.unique(source):
            portions = self.portions[number]
            firsts = np.array([portion.first for portion in portions])
            which = np.searchsorted(firsts, nth, side="right") - 1
            for index in np.unique(which[source == number]):
                portion = portions[index]
                chosen = np.flatnonzero((source == number) & (which == index))
                row = nth[chosen] - portion.first + portion.epoch * portion.packing.rows
                yield portion.packing, shuffled(row, portion.packing.rows, portion.key), chosen

    def first_documents(self, start: int, count: int) -> Int64:
        """The document that each of the rows `start` to `start + count - 1` begins with, int64 [count]."""
        documents = np.empty(count, np.int64)
        for packing, row, chosen in self.places(start, count):
            pieces = packing.pieces(row)
            documents[chosen] = pieces.document[np.cumsum(pieces.counts) - pieces.counts]
        return documents

    def tokens(self, count: int) -> npt.NDArray[np.float64]:
        """Tokens of every source in the phase's first `count` rows, float64 [sources]; rows of a plan count alike."""
        read = np.zeros(len(self.portions))
        for number, taken in enumerate(self.order.taken(count).tolist()):
            portions = self.portions[number]
            ends = [*(portion.first for portion in portions[1:]), taken]
            for portion, end in zip(portions, ends, strict=False):
                rows_read = max(0, min(end, taken) - portion.first)
                read[number] += portion.packing.tokens * rows_read / max(portion.packing.rows, 1)
        return read

    def efficiency(self, count: int) -> float:
        """The share, from 0 to 1, of the places of the phase's first `count` rows that hold a token."""
        used = 0.0
        for portions, taken in zip(self.portions, self.order.taken(count).tolist(), strict=True):
            ends = [*(portion.first for portion in portions[1:]), taken]
            used += sum(
                portion.packing.efficiency * max(0, min(end, taken) - portion.first)
                for portion, end in zip(portions, ends, strict=False)
            )
        return used / count


def read_in_phases(
    documents: Sequence[Int64],
    lengths: Int64,
    weights: Sequence[float],
    phases: Sequence[tuple[int, int]],
    seed: int,
    alone: bool = False,
    phase_weights: Sequence[Sequence[float]] = (),
    keep: Keep = lambda packing: packing,
) -> tuple[PhaseRows, ...]:
    """Pack a training run, phase by phase.

    Args:
        documents: Per source, the numbers of its documents, int64 [documents of the source].
        lengths: Tokens of every document, int64 [documents].
        weights: Sampling weight per source: one of weight 2 is read twice as often as one of weight 1, and one of
            weight 0 never.
        phases: Context length and number of rows of each phase. The last one goes on for ever.
        seed: Seed of the order.
        alone: One document a row; see `packing.plan`.
        phase_weights: For each phase the weight of every source in it, where they change.
        keep: Gets every plan that rows are read by, and returns it as it is to be kept; by default in memory.

    Returns:
        The rows of every phase, in the order of the phases.
    """
    streams = [_Stream(lengths, numbers, seed, number, alone, keep) for number, numbers in enumerate(documents)]

    phase_rows = []
    for number, (context, count) in enumerate(phases):
        rows_per_pass = [stream.rows_per_pass(context) for stream in streams]
        of_phase = phase_weights[number] if phase_weights else weights
        order = RowOrder(rows_per_pass, of_phase, key_of(seed, _PHASES_KEY, number))
        is_last = number == len(phases) - 1
        row_counts = [
            None if is_last and weight else taken
            for taken, weight in zip(order.taken(count).tolist(), of_phase, strict=True)
        ]
        # The streams remember how far they were read: the phases have to take from them in turn.
        portions = tuple(
            tuple(stream.take(context, row_count)) for stream, row_count in zip(streams, row_counts, strict=True)
        )
        phase_rows.append(PhaseRows(context, order, portions))
    return tuple(phase_rows)


class _Stream:
    """The documents of one source, pass after pass, and how much of them was taken."""

    def __init__(self, lengths: Int64, documents: Int64, seed: int, number: int, alone: bool, keep: Keep) -> None:
        self._lengths = lengths
        self._documents = documents
        self._key = (seed, number + 1)
        self._alone = alone
        self._keep = keep
        self._plans: dict[int, Packing] = {}
        self._total = int(lengths[documents].sum())
        self._pass = 0
        self._taken = 0  # tokens of this pass

    def rows_per_pass(self, context: int) -> int:
        """Rows of the plan of one whole pass."""
        return size_of_plan(self._lengths[self._documents], context, self._alone).rows

    def _everything(self, context: int) -> Packing:
        """The plan of one whole pass."""
        if context not in self._plans:
            self._plans[context] = self._keep(plan(whole(self._lengths, self._documents), context, self._alone))
        return self._plans[context]

    def take(self, context: int, count: int | None) -> Iterator[Portion]:
        """Take the next `count` rows of the stream, or all that ever come."""
        per_pass, first = self.rows_per_pass(context), 0
        while per_pass and (count is None or first < count):
            left = None if count is None else count - first
            if self._taken == 0 and (left is None or left >= per_pass):
                yield Portion(first, self._everything(context), key_of(*self._key), self._pass)
                if left is None:
                    return
                self._pass += left // per_pass
                first += left // per_pass * per_pass
                continue

            end, spans = self._fit(context, left)
            packing = self._keep(plan(spans, context, self._alone))
            yield Portion(first, packing, key_of(*self._key, self._pass, self._taken), 0)
            finished = end == self._total
            first += packing.rows if finished or left is None else left
            self._pass, self._taken = (self._pass + 1, 0) if finished else (self._pass, end)

    def _fit(self, context: int, count: int | None) -> tuple[int, Spans]:
        """Where the pass has to be cut so that the tokens before the cut fill `count` rows, and these tokens.

        The number of rows grows with the number of tokens, nearly in proportion. So interpolation finds the place in a
        few tries. Halving at every third try makes sure that the search ends.
        """
        order, ends = self._pass_in_order()
        low, high = self._taken, self._total
        spans = self._spans(order, ends, high)
        rows_of_spans = self._rows(spans, context)
        if count is None or rows_of_spans <= count:
            return high, spans

        low_rows, high_rows, tries = 0, rows_of_spans, 0
        fitting = low, spans
        while high - low > 1:
            share = 0.5 if tries % 3 == 2 else (count + 0.5 - low_rows) / (high_rows - low_rows)
            tries += 1
            end = min(max(low + int(share * (high - low)), low + 1), high - 1)
            spans = self._spans(order, ends, end)
            rows_of_spans = self._rows(spans, context)
            if rows_of_spans > count:
                high, high_rows = end, rows_of_spans
                continue
            low, low_rows, fitting = end, rows_of_spans, (end, spans)
            if rows_of_spans == count:
                break
        return fitting

    def _rows(self, spans: Spans, context: int) -> int:
        return size_of_plan(spans.length, context, self._alone).rows

    def _pass_in_order(self) -> tuple[Int64, Int64]:
        """Documents in the order of this pass, and the tokens up to the end of each, int64 [documents] both."""
        count = len(self._documents)
        places = self._pass * count + np.arange(count, dtype=np.int64)
        order = self._documents[shuffled(places, count, key_of(*self._key, _DOCUMENTS_KEY))]
        return order, np.cumsum(self._lengths[order])

    def _spans(self, order: Int64, ends: Int64, end: int) -> Spans:
        """The pass's tokens that were not taken yet, up to `end`."""
        first, last = np.searchsorted(ends, self._taken, side="right"), np.searchsorted(ends, end, side="left")
        document = order[first : last + 1]
        length, start = self._lengths[document], np.zeros(len(document), np.int64)
        # The first document may have been begun already, and the last one is cut at `end`.
        start[0] = self._taken - (ends[first] - length[0])
        length[0] -= start[0]
        length[-1] -= ends[last] - end
        return Spans(document, start, length)
