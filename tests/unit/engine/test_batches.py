"""Batches are a function of the step, and the same tokens under every layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.tokens.shards import ArrayTokens
from training.engine.batches import (
    PackedBatches,
    loader,
    read_documents,
    share_steps,
    smaller_divisor,
)
from training.errors import RecipeError
from training.specs.micro_batches import micro_batch_tokens


def batches(micro: int, world_size: int, alone: bool = False) -> PackedBatches:
    generator = np.random.default_rng(3)
    tokens = ArrayTokens([generator.integers(5, 90, size) for size in generator.integers(3, 40, 200)])
    segments = read_documents([np.arange(200)], tokens, [1.0], [(0, 2, 16), (2, 2, 64), (2, 5, 32)], 256, 1, alone)
    return PackedBatches(segments, tokens, 256, micro, world_size, 1, alone)


def tokens_of_step(source: PackedBatches, step: int) -> torch.Tensor:
    parts = [
        source.micro_batch(step, micro, rank)["input_ids"]
        for micro in range(source.accumulation)
        for rank in range(source.world_size)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize(("micro", "world_size"), [(128, 1), (32, 1), (64, 2), (32, 4)])
def test_a_step_holds_the_same_rows_under_every_layout(micro: int, world_size: int) -> None:
    whole, divided = batches(256, 1), batches(micro, world_size)
    assert (whole.accumulation, divided.accumulation) == (1, 256 // micro // world_size)
    for step in range(5):
        assert torch.equal(tokens_of_step(whole, step), tokens_of_step(divided, step))


def test_the_number_of_rows_follows_the_context() -> None:
    source = batches(64, 1)
    assert source.micro_batch(1, 0, 0)["input_ids"].shape == (4, 16)
    assert source.micro_batch(2, 0, 0)["labels"].shape == (2, 32)
    assert source.longest()["position_ids"].shape == (2, 32)
    assert [source.tokens_before(step) for step in (0, 2, 5)] == [0, 512, 1280]
    assert (source.steps, source.accumulation) == (5, 4)


def test_a_row_of_its_own_has_a_mask_for_its_padding() -> None:
    source = batches(256, 1, alone=True)
    batch = source.micro_batch(3, 0, 0)
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == 1)
    assert (batch["labels"][:, 1:] != -100).sum() == (batch["attention_mask"][:, 1:]).sum()
    assert source.efficiency < 0.8 < batches(256, 1).efficiency


@pytest.mark.parametrize("alone", [False, True])
def test_padding_is_told_by_its_place_where_it_is_the_end_of_a_turn(alone: bool) -> None:
    """Imported models pad with their end token: by its id, every end in the data would count as padding."""
    source = batches(256, 1, alone)
    end = int(source.longest()["input_ids"][0, 3])
    tokens = source.longest(pad=-1)["input_ids"]
    by_place = tokens[tokens != -1]
    assert (by_place == end).any()
    assert torch.equal(replace(source, pad=end).longest(pad=-1)["input_ids"], tokens)


def test_a_loader_starts_at_any_step_and_leaves_random_numbers_alone() -> None:
    source = batches(128, 1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    everything = [batch["input_ids"] for batch in loader(source, 0, 0)]
    late = [batch["input_ids"] for batch in loader(source, 3, 0)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(everything) == 10
    assert len(late) == 4
    assert all(torch.equal(one, other) for one, other in zip(everything[6:], late, strict=True))


def test_micro_batch_is_the_share_of_a_small_batch() -> None:
    assert micro_batch_tokens(4096, 8192, 1, [128, 512]) == 4096
    assert micro_batch_tokens(8192, 8192, 2, [128, 512]) == 4096
    assert micro_batch_tokens(8192, 2048, 2, [512]) == 2048


@pytest.mark.parametrize(
    ("batch", "micro", "world_size", "context", "message"),
    [
        (8192, 3072, 1, 512, "cannot be divided"),
        (8192, 8192, 3, 512, "cannot be divided"),
        (8192, 256, 1, 512, "whole rows of 512 tokens"),
        (4, 8192, 8, 2, "cannot be divided"),
    ],
)
def test_impossible_layouts_name_what_to_change(
    batch: int, micro: int, world_size: int, context: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        micro_batch_tokens(batch, micro, world_size, [context])


def test_shares_cover_every_step_once() -> None:
    assert share_steps(200, [0.5, 0.3, 0.2]) == [(0, 100), (100, 160), (160, 200)]
    assert share_steps(3, [0.1, 0.1, 0.8]) == [(0, 0), (0, 1), (1, 3)]
    assert share_steps(7, [1 / 3, 1 / 3, 1 / 3])[-1][1] == 7


@pytest.mark.parametrize(
    ("micro", "world_size", "smaller"),
    [
        (256, 1, 128),
        (128, 2, 64),
        (64, 1, 32),
        (32, 1, None),
        (32, 4, None),
    ],
)
def test_the_next_smaller_micro_batch_holds_whole_rows(micro: int, world_size: int, smaller: int | None) -> None:
    """The batch has 256 tokens and the longest rows 32."""
    found = batches(micro, world_size)
    assert found.smaller() == smaller
    if smaller:
        assert batches(smaller, world_size).accumulation == 2 * found.accumulation


def test_three_rows_become_one() -> None:
    assert [smaller_divisor(6, part) for part in (6, 3, 2, 1)] == [3, 1, 1, None]


def test_data_goes_on_beyond_the_last_step() -> None:
    """What a rollback skips at the end is made up for."""
    source = batches(64, 1)
    assert source.micro_batch(7, 0, 0)["input_ids"].shape == (2, 32)
    assert not torch.equal(tokens_of_step(source, 7), tokens_of_step(source, 4))
