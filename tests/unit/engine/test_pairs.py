"""Preference pairs."""

import pytest

from training.errors import RecipeError
from training.specs.micro_batches import micro_batch_pairs


@pytest.mark.parametrize(
    ("pairs", "context", "tokens", "world_size", "expected"),
    [(16, 512, 8192, 1, 8), (16, 512, 8192, 2, 8), (12, 512, 8192, 1, 6), (16, 512, 100, 1, 1), (4, 64, 8192, 1, 4)],
)
def test_micro_batch_divides_the_share_and_fits(
    pairs: int, context: int, tokens: int, world_size: int, expected: int
) -> None:
    assert micro_batch_pairs(pairs, context, tokens, world_size) == expected


def test_ranks_must_share_evenly() -> None:
    with pytest.raises(RecipeError, match="batch_pairs 15 cannot be divided among 2"):
        micro_batch_pairs(15, 512, 8192, 2)
