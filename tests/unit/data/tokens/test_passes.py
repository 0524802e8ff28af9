"""One pass of the data is one pass over all phases of a curriculum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from training.data.tokens.passes import PhaseRows, read_in_phases
from training.data.tokens.shards import Int64

LENGTHS = np.maximum(3, np.random.default_rng(0).lognormal(7, 1.3, 300).astype(np.int64))
EVERYTHING = [np.arange(300)]
TOKENS = int(LENGTHS.sum())


def phases(
    passes: float, shares: Sequence[tuple[int, float]] = ((128, 0.3), (256, 0.4), (512, 0.3))
) -> list[tuple[int, int]]:
    """Contexts and row counts of a run whose rows have as many places as so many passes have tokens."""
    return [(context, int(TOKENS * passes * share) // context) for context, share in shares]


def times_read(run: Sequence[tuple[int, int]], read: Sequence[PhaseRows]) -> Int64:
    """How often every token is learned, int64 [tokens]."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    seen = np.zeros(TOKENS, np.int64)
    for (_, count), rows in zip(run, read, strict=True):
        for packing, row, _ in rows.places(0, count):
            pieces = packing.pieces(row)
            starts = offsets[pieces.document] + pieces.start
            for start, length in zip(starts, pieces.length, strict=True):
                seen[start : start + length] += 1
    return seen


def test_one_pass_reads_every_token_once() -> None:
    """As many places as tokens: padding and the tokens before the pieces take one in a hundred."""
    run = phases(1)
    read = read_in_phases(EVERYTHING, LENGTHS, [1.0], run, 7)
    counts = np.bincount(times_read(run, read)) / TOKENS
    assert len(counts) == 2
    assert counts[1] > 0.985
    assert all(rows.efficiency(count) > 0.995 for rows, (_, count) in zip(read, run, strict=True))


@pytest.mark.parametrize(
    ("passes", "shares"),
    [
        (1.33, ((128, 0.3), (256, 0.4), (512, 0.3))),
        (3.4, ((128, 0.3), (256, 0.4), (512, 0.3))),
        (2.5, ((256, 0.5), (256, 0.5))),
        (5.2, ((128, 0.05), (256, 0.9), (64, 0.05))),
        (7.7, ((128, 1.0),)),
    ],
)
def test_no_token_comes_again_before_all_have_come(passes: float, shares: tuple[tuple[int, float], ...]) -> None:
    run = phases(passes, shares)
    seen = times_read(run, read_in_phases(EVERYTHING, LENGTHS, [1.0], run, 7))
    assert seen.max() - seen.min() <= 1
    assert seen.mean() == pytest.approx(passes, rel=0.02)


def test_sources_are_read_by_their_weights() -> None:
    sources = [np.arange(0, 100), np.arange(100, 300)]
    owner = np.repeat(np.arange(300), LENGTHS) >= 100
    run = phases(2)
    alike = times_read(run, read_in_phases(sources, LENGTHS, [1.0, 1.0], run, 7))
    assert alike[owner].mean() == pytest.approx(alike[~owner].mean(), rel=0.02)
    twice = times_read(run, read_in_phases(sources, LENGTHS, [2.0, 1.0], run, 7))
    assert twice[~owner].mean() == pytest.approx(2 * twice[owner].mean(), rel=0.02)
    for seen in (alike, twice):
        assert np.ptp(seen[owner]) <= 1
        assert np.ptp(seen[~owner]) <= 1


def test_what_is_read_of_each_source_is_told() -> None:
    sources = [np.arange(0, 100), np.arange(100, 300)]
    owner = np.repeat(np.arange(300), LENGTHS) >= 100
    run = phases(2)
    read = read_in_phases(sources, LENGTHS, [3.0, 1.0], run, 7)
    seen = times_read(run, read)
    told = sum(rows.tokens(count) for rows, (_, count) in zip(read, run, strict=True))
    assert told.tolist() == pytest.approx([seen[~owner].sum(), seen[owner].sum()], rel=0.01)


def test_a_phase_may_have_weights_of_its_own() -> None:
    sources = [np.arange(0, 100), np.arange(100, 300)]
    run = phases(1)
    weights = [[1.0, 1.0]] * (len(run) - 1) + [[1.0, 4.0]]
    read = read_in_phases(sources, LENGTHS, [1.0, 1.0], run, 7, phase_weights=weights)
    as_ever = read_in_phases(sources, LENGTHS, [1.0, 1.0], run, 7)
    shares = [rows.tokens(count) / rows.tokens(count).sum() for rows, (_, count) in zip(read, run, strict=True)]
    before = [rows.tokens(count) / rows.tokens(count).sum() for rows, (_, count) in zip(as_ever, run, strict=True)]
    assert all(np.array_equal(now, then) for now, then in zip(shares[:-1], before[:-1], strict=True))
    for now, then, (_, count) in zip(read[:-1], as_ever[:-1], run[:-1], strict=True):
        rows_of = [np.concatenate([row for _, row, _ in phase.places(0, count)]) for phase in (now, then)]
        assert np.array_equal(*rows_of), "only what comes after the change is another"
    ratio = shares[-1] / before[-1]
    assert ratio[1] / ratio[0] == pytest.approx(4, rel=0.1)  # rows are filled as well as the documents allow


def test_an_empty_source_is_never_read() -> None:
    run = phases(1)
    (*_, rows) = read_in_phases([*EVERYTHING, np.empty(0, np.int64)], LENGTHS, [1.0, 5.0], run, 7)
    assert rows.order.taken(run[-1][1]).tolist() == [run[-1][1], 0]


def test_rows_are_a_function_of_their_number() -> None:
    """Wherever reading begins, and beyond the end of the last phase too."""
    run = phases(2.5)
    rows = read_in_phases(EVERYTHING, LENGTHS, [1.0], run, 7)[-1]
    count = run[-1][1]

    def read(start: int, number: int) -> list[tuple[int, int]]:
        out: dict[int, tuple[int, int]] = {}
        for packing, row, chosen in rows.places(start, number):
            pieces = packing.pieces(row)
            firsts = np.cumsum(pieces.counts) - pieces.counts
            for place, piece in zip(chosen.tolist(), firsts.tolist(), strict=True):
                out[start + place] = int(pieces.document[piece]), int(pieces.start[piece])
        return [out[place] for place in sorted(out)]

    whole = read(0, 2 * count)
    assert whole == [piece for start in range(0, 2 * count, 37) for piece in read(start, 37)][: 2 * count]
    assert read(count, 40) != read(0, 40)


def test_seeds_and_phases_differ() -> None:
    run = phases(2, ((256, 0.5), (256, 0.5)))
    first, second = read_in_phases(EVERYTHING, LENGTHS, [1.0], run, 7)
    (other, _) = read_in_phases(EVERYTHING, LENGTHS, [1.0], run, 8)
    rows = [np.concatenate([row for _, row, _ in phase.places(0, 50)]) for phase in (first, second, other)]
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
