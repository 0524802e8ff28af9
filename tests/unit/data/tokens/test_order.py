from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.tokens.order import BLOCK, RowOrder

_SOURCES = st.lists(st.tuples(st.integers(0, 3000), st.floats(0.01, 100)), min_size=1, max_size=6).filter(
    lambda sources: any(rows for rows, _ in sources)
)


def _order(sources: list[tuple[int, float]], seed: int = 0) -> RowOrder:
    return RowOrder([rows for rows, _ in sources], [weight for _, weight in sources], seed)


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_one_source_is_read_exactly_once_per_epoch(size: int, seed: int, epoch: int) -> None:
    source, row = RowOrder([size], [3.0], seed).rows(epoch * size, size)
    assert not source.any()
    assert np.array_equal(np.sort(row), np.arange(size))


@given(_SOURCES, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_source_is_read_once_before_any_of_it_again(sources: list[tuple[int, float]], seed: int) -> None:
    source, row = _order(sources, seed).rows(0, 8000)
    for number, (size, _) in enumerate(sources):
        rows_of_source = row[source == number]
        for begin in range(0, len(rows_of_source) - size + 1, max(size, 1)):
            assert np.array_equal(np.sort(rows_of_source[begin : begin + size]), np.arange(size))


@given(_SOURCES, st.integers(0, 10**7 // BLOCK), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_block_holds_each_source_in_its_share(sources: list[tuple[int, float]], block: int, seed: int) -> None:
    order = _order(sources, seed)
    counts = np.bincount(order.rows(block * BLOCK, BLOCK)[0], minlength=len(sources))
    assert counts.tolist() == (order.taken((block + 1) * BLOCK) - order.taken(block * BLOCK)).tolist()
    shares = np.array([rows * weight for rows, weight in sources])
    ideal = shares / shares.sum() * block * BLOCK
    bound = 1.01 if np.count_nonzero(shares) <= 2 else 1.5
    assert np.abs(order.taken(block * BLOCK) - ideal).max() < bound
    assert order.taken(block * BLOCK).sum() == block * BLOCK
    assert all(count == 0 for count, (rows, _) in zip(counts, sources, strict=True) if rows == 0)


@given(_SOURCES, st.integers(0, 10**9), st.integers(1, 4000), st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_is_the_same_from_any_start(
    sources: list[tuple[int, float]], start: int, count: int, data: st.DataObject
) -> None:
    order = _order(sources)
    whole = np.stack(order.rows(start, count))
    cut = data.draw(st.integers(0, count))
    parts = [np.stack(order.rows(start, cut)), np.stack(order.rows(start + cut, count - cut))]
    assert np.array_equal(whole, np.concatenate(parts, axis=1))


def test_two_sources_are_each_read_once_per_epoch_when_weights_are_equal() -> None:
    order = RowOrder([1024, 3072], [1.0, 1.0], 7)
    for epoch in range(3):
        source, row = order.rows(epoch * 4096, 4096)
        assert sorted(row[source == 0]) == list(range(1024))
        assert sorted(row[source == 1]) == list(range(3072))


def test_a_weight_of_two_reads_a_source_twice_as_often() -> None:
    source, row = RowOrder([1000, 1000], [2.0, 1.0], 7).rows(0, 3 * BLOCK * 10)
    assert abs((source == 0).mean() - 2 / 3) < 1e-4
    assert np.bincount(row[source == 0]).min() >= 20


def test_seeds_and_epochs_differ() -> None:
    first, second = RowOrder([BLOCK], [1.0], 1), RowOrder([BLOCK], [1.0], 2)
    assert not np.array_equal(first.rows(0, BLOCK)[1], second.rows(0, BLOCK)[1])
    assert not np.array_equal(first.rows(0, BLOCK)[1], first.rows(BLOCK, BLOCK)[1])
    assert np.abs(np.corrcoef(first.rows(0, BLOCK)[1], np.arange(BLOCK))[0, 1]) < 0.15


def test_work_does_not_grow_with_the_row_number(monkeypatch: pytest.MonkeyPatch) -> None:
    order = RowOrder([9_000, 500_000], [1.0, 2.0], 0)
    taken, asked = order.taken, []

    def counted(rows: int) -> np.ndarray:
        asked.append(rows)
        return taken(rows)

    monkeypatch.setattr(order, "taken", counted)
    order.rows(10, 64)
    order.rows(10_000_000 * BLOCK + 10, 64)
    assert asked == [0, BLOCK, 10_000_000 * BLOCK, 10_000_001 * BLOCK]


def test_a_seed_of_any_size_is_one_of_its_own() -> None:
    seeds = (0, 2**32, 20261129012345, 2**64, 2**64 + 1, 2**70)
    orders = [RowOrder([BLOCK], [1.0], seed).rows(0, 50)[1].tolist() for seed in seeds]
    assert len({tuple(order) for order in orders}) == len(seeds)


@given(_SOURCES, st.integers(0, 20_000))
@settings(max_examples=30, deadline=None)
def test_rows_taken_are_counted_anywhere(sources: list[tuple[int, float]], count: int) -> None:
    order = _order(sources)
    assert order.taken(count).tolist() == np.bincount(order.turns(0, count)[0], minlength=len(sources)).tolist()


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match="no source has rows and a weight"):
        RowOrder([0, 0], [1.0, 1.0], 0)
    with pytest.raises(ValueError, match="no source has rows and a weight"):
        RowOrder([0, 5], [1.0, 0.0], 0)
    with pytest.raises(ValueError, match="at least 0"):
        RowOrder([5, 5], [1.0, -1.0], 0)


def test_a_source_of_weight_0_is_never_read() -> None:
    order = RowOrder([10, 20, 30], [1.0, 0.0, 2.0], 3)
    source, _ = order.turns(0, 3000)
    assert set(source.tolist()) == {0, 2}
    assert order.taken(3000).tolist() == np.bincount(source, minlength=3).tolist()


def test_the_order_stays_what_it_was() -> None:
    """A training that was begun goes on with the same rows, whatever computes them."""
    order = RowOrder([9_000, 500_000, 0, 37], [1.0, 2.0, 1.0, 3.5], 20261130)
    source, row = order.rows(123_456, 3_000)
    digest = hashlib.sha256(source.tobytes() + row.tobytes()).hexdigest()
    assert digest == "a23911400530d787326b58921cce3cf612a32bcb75477a333c2d81b5ab8cfb41"
