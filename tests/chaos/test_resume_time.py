"""A resume late in a training costs what an early one costs."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.promises import Promise
from training.data.tokens.shards import ArrayTokens
from training.engine.batches import PackedBatches, loader, read_documents

EARLY, LATE, STEPS = 10, 10_000_000, 10_000_100
CONTEXT, ROWS = 64, 8


@pytest.fixture(scope="module")
def batches() -> PackedBatches:
    """A long training over two sources. A document is one number again and again, so that rows can be told apart."""
    generator = np.random.default_rng(0)
    documents = [np.full(size, 5 + number) for number, size in enumerate(generator.integers(20, CONTEXT, 3000))]
    tokens, sources = ArrayTokens(documents), [np.arange(2000), np.arange(2000, 3000)]
    segments = read_documents(sources, tokens, [1.0, 2.0], [(0, STEPS, CONTEXT)], CONTEXT * ROWS, 3, alone=False)
    return PackedBatches(segments, tokens, CONTEXT * ROWS, CONTEXT * ROWS, 1, 0)


def first_batch(batches: PackedBatches, step: int) -> tuple[float, dict[str, torch.Tensor]]:
    started = time.perf_counter()
    batch = next(iter(loader(batches, step, 0)))
    return time.perf_counter() - started, batch


@pytest.mark.promise(
    "The first batch is ready at step 10,000,000 in the time it takes at step 10, at most 1 ms apart "
    "(medians of 50), and holds the right tokens"
)
def test_the_loader_starts_anywhere_at_once(promise: Promise, batches: PackedBatches) -> None:
    first_batch(batches, EARLY)  # compiles
    for trial in promise.trials(quick=3, full=50):
        with trial:
            late = LATE + trial.random.randint(0, 50)
            times = {
                step: statistics.median(first_batch(batches, step)[0] for _ in range(50)) for step in (EARLY, late)
            }
            assert abs(times[late] - times[EARLY]) < 1e-3, times
            assert_right(batches, late)
            assert_right(batches, trial.random.randint(0, 50))


def assert_right(batches: PackedBatches, step: int) -> None:
    """The loader gives the rows of its order, and over one epoch of them each row of a source comes exactly once."""
    (segment,) = batches.segments
    order, portions = segment.rows.order, segment.rows.portions
    source, nth = order.turns(step * ROWS, ROWS)
    whole = [replace(batches, micro_tokens=CONTEXT).micro_batch(step, micro, 0)["input_ids"] for micro in range(ROWS)]
    assert torch.equal(first_batch(batches, step)[1]["input_ids"], torch.cat(whole))

    which = int(source[0])
    (portion,) = portions[which]
    count = portion.packing.rows
    begin = int(nth[0])
    seen = np.concatenate(
        [
            row
            for packing, row, _ in segment.rows.places(step * ROWS, 6 * sum(one.packing.rows for (one,) in portions))
            if packing is portion.packing
        ]
    )
    to_next_epoch = -begin % count
    epoch = seen[to_next_epoch : to_next_epoch + count]
    assert sorted(epoch.tolist()) == list(range(count)), "no whole epoch of the source follows"
