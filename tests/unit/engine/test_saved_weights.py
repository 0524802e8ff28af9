"""The change that was trained is the change that is saved."""

from __future__ import annotations

import pytest
import torch

from training.engine.saved_weights import LEAST_COSINE, change_cosine, choose_dtype, sample_weights

SIZES = {"embed": (50, 16), "up": (32, 16), "norm": (16,)}
Weights = dict[str, torch.Tensor]


@pytest.fixture
def parent() -> Weights:
    """Weights of a model's usual size, as a bf16 folder gives them."""
    draw = torch.Generator().manual_seed(1)
    return {name: (0.02 * torch.randn(size, generator=draw)).bfloat16().float() for name, size in SIZES.items()}


def trained(parent: Weights, step: float) -> Weights:
    """Every weight moved by the same amount in a random direction, as Adam's first steps do."""
    draw = torch.Generator().manual_seed(2)
    return {
        name: value + step * (2 * torch.randint(2, value.shape, generator=draw) - 1) for name, value in parent.items()
    }


@pytest.mark.parametrize(("step", "saved"), [(1e-5, torch.float32), (1e-2, torch.bfloat16)])
def test_small_changes_are_saved_in_float32(parent: Weights, step: float, saved: torch.dtype) -> None:
    weights = trained(parent, step)
    sample = sample_weights(weights, list(weights), seed=3)

    dtype, why = choose_dtype(weights, parent, sample, torch.bfloat16)

    cosine = change_cosine((weights[name], weights[name].bfloat16(), parent[name]) for name in parent)
    assert cosine is not None
    assert dtype == saved
    assert (cosine >= LEAST_COSINE) == (saved == torch.bfloat16)
    assert f"{cosine:.2f}" in why or f"{cosine:.1f}" in why
    kept = change_cosine((weights[name], weights[name].to(dtype), parent[name]) for name in parent)
    assert kept is not None
    assert kept >= LEAST_COSINE


def test_a_parent_in_float32_is_not_rounded_by_its_child(parent: Weights) -> None:
    """Most weights do not change, and rounding all of them would outweigh what does."""
    finer = {name: value * 1.001 for name, value in parent.items()}
    weights = finer | {"norm": finer["norm"] + 1e-4}

    assert choose_dtype(weights, finer, (), torch.bfloat16)[0] == torch.float32


def test_a_base_model_and_an_unchanged_one_keep_their_precision(parent: Weights) -> None:
    weights = trained(parent, 1e-5)

    assert choose_dtype(weights, None, (), torch.bfloat16)[0] == torch.bfloat16
    assert choose_dtype(parent, parent, (), torch.bfloat16) == (torch.bfloat16, "bfloat16: no weight has changed")
    assert choose_dtype(weights, parent, (), torch.float32)[0] == torch.float32


def test_the_cosine_of_what_is_saved(parent: Weights) -> None:
    weights = trained(parent, 1e-3)

    def cosine(saved: Weights) -> float | None:
        return change_cosine((weights[name], saved[name], parent[name]) for name in parent)

    assert cosine(weights) == pytest.approx(1.0)
    assert cosine(parent) == 0.0
    assert cosine({name: 2 * parent[name] - weights[name] for name in parent}) == pytest.approx(-1.0)
    assert change_cosine((value, weights[name], value) for name, value in parent.items()) is None


def test_the_sample_is_seeded_and_exact(parent: Weights) -> None:
    large = {name: value.repeat(40, *[1] * (value.dim() - 1)) for name, value in parent.items()}
    first, again, other = (sample_weights(large, list(large), seed) for seed in (7, 7, 8))

    assert first == again
    assert first != other
    assert {part.name for part in first} == set(SIZES)
    for part in first:
        values = large[part.name].flatten()[torch.tensor(part.indices)]
        assert torch.equal(torch.tensor(part.values), values)
    drawn = {part.name: len(part.indices) / large[part.name].numel() for part in first}
    assert max(drawn.values()) < 2 * min(drawn.values()), "each weight is as likely as any other"
