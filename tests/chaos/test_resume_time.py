"""A resume late in a training costs what an early one costs."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.promises import Promise
from training.data.shards import ArrayTokens
from training.engine.batches import PackedBatches, Segment, loader, pack

EARLY, LATE, STEPS = 10, 10_000_000, 10_000_100
CONTEXT, ROWS = 64, 8


@pytest.fixture(scope="module")
def batches() -> PackedBatches:
    """A long training over two sources. A document is one number again and again, so that rows can be told apart."""
    generator = np.random.default_rng(0)
    documents = [np.full(size, 5 + number) for number, size in enumerate(generator.integers(20, CONTEXT, 3000))]
    lengths = np.array([len(document) for document in documents], np.int64)
    packing = pack([np.arange(2000), np.arange(2000, 3000)], lengths, [1.0, 2.0], CONTEXT, seed=3)
    return PackedBatches((Segment(0, STEPS, packing),), ArrayTokens(documents), CONTEXT * ROWS, CONTEXT * ROWS, 1, 0)


def first_batch(batches: PackedBatches, step: int) -> tuple[float, dict[str, torch.Tensor]]:
    started = time.perf_counter()
    batch = next(iter(loader(batches, step, 0)))
    return time.perf_counter() - started, batch


@pytest.mark.promise("The first batch is ready at step 10,000,000 in the time it takes at step 10, at most 1 ms apart "
                     "(medians of 50), and holds the right tokens")
def test_the_loader_starts_anywhere_at_once(promise: Promise, batches: PackedBatches) -> None:
    first_batch(batches, EARLY)  # compiles
    for trial in promise.trials(quick=3, full=50):
        with trial:
            late = LATE + trial.random.randint(0, 50)
            times = {step: statistics.median(first_batch(batches, step)[0] for _ in range(50))
                     for step in (EARLY, late)}
            assert abs(times[late] - times[EARLY]) < 1e-3, times
            assert_right(batches, late)
            assert_right(batches, trial.random.randint(0, 50))


def assert_right(batches: PackedBatches, step: int) -> None:
    """The loader gives the rows of its order, and over one epoch of them each row of a source comes exactly once."""
    (segment,) = batches.segments
    order, plans = segment.packing.order, segment.packing.plans
    source, row = order.rows(step * ROWS, ROWS)
    whole = [replace(batches, micro_tokens=CONTEXT).micro_batch(step, micro, 0)["input_ids"] for micro in range(ROWS)]
    assert torch.equal(first_batch(batches, step)[1]["input_ids"], torch.cat(whole))
    which = int(source[0])
    count = plans[which].rows
    sources, rows = order.rows(step * ROWS, 6 * sum(plan.rows for plan in plans))
    seen = rows[sources == which]
    assert seen[0] == row[0]
    epoch_ends = [end for end in range(count) if sorted(seen[end:end + count].tolist()) == list(range(count))]
    assert epoch_ends, "no whole epoch of the source follows"
