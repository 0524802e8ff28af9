"""In which precision weights are saved: the change that was trained must be the change that is saved.

bf16 keeps 8 bits of a weight. A stage that moves its parent's weights by less than that rounds most of its work away:
after 20 steps of DPO at a rate of 5e-7 the saved change had a cosine of 0.09 with the trained one. Stochastic rounding
keeps the change on average, but its noise outweighs it. So such weights are saved in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from training.specs.probe import WeightSample

LEAST_COSINE = 0.98
_SAMPLED = 8192
Weights = Mapping[str, torch.Tensor]


def choose_dtype(
    weights: Weights, parent: Weights | None, sample: Sequence[WeightSample], training: torch.dtype
) -> tuple[torch.dtype, str]:
    """The precision to save in, and why.

    The training precision is kept where the saved change points where the trained one does: over all weights, and over
    the sample by which evaluation will judge.

    Args:
        weights: The trained weights, float32.
        parent: The weights that training began from, by the same names; None for a base model.
        sample: Elements of `weights`.
        training: The precision that was trained in.

    Returns:
        The type, and a sentence for the log and the model card.
    """
    name = str(training).removeprefix("torch.")
    if training == torch.float32 or parent is None:
        return training, f"{name}: what it was trained in"

    cosines = [
        change_cosine((weights[name], weights[name].to(training), parent[name]) for name in parent),
        change_cosine(_sampled(sample, parent, training)),
    ]
    measured = [cosine for cosine in cosines if cosine is not None]
    if not measured:
        return training, f"{name}: no weight has changed"
    if (least := min(measured)) >= LEAST_COSINE:
        return training, f"{name}: the cosine of the saved and the trained change is {least:.4f}"
    return torch.float32, (
        f"float32: in {name} the cosine of the saved and the trained change would be {least:.4f}, below {LEAST_COSINE}"
    )


def change_cosine(tensors: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> float | None:
    """Cosine of (saved - parent) and (trained - parent) over tensors (trained, saved, parent).

    Returns:
        None where no weight was trained, 0.0 where nothing of the change is saved.
    """
    product = trained_norm = saved_norm = 0.0
    for trained, saved, parent in tensors:
        trained_change, saved_change = trained.double() - parent.double(), saved.double() - parent.double()
        product += float((trained_change * saved_change).sum())
        trained_norm += float(trained_change.square().sum())
        saved_norm += float(saved_change.square().sum())

    if not trained_norm:
        return None
    return product / math.sqrt(trained_norm * saved_norm) if saved_norm else 0.0


def sample_weights(weights: Weights, names: Sequence[str], seed: int) -> tuple[WeightSample, ...]:
    """A seeded sample of elements, each as likely as any other.

    Args:
        weights: State dict, float32.
        names: Parameters to draw from, each tied one once.
        seed: Decides the places.
    """
    # Places in all tensors laid end to end; then each place's tensor, and the place within it.
    sizes = np.array([weights[name].numel() for name in names], np.int64)
    ends = np.cumsum(sizes)
    places = np.unique(np.random.default_rng(seed).integers(ends[-1], size=_SAMPLED))
    owners = np.searchsorted(ends, places, side="right")

    samples = []
    for number in np.unique(owners):
        indices = places[owners == number] - (ends[number] - sizes[number])
        values = weights[names[number]].flatten()[torch.from_numpy(indices)].float()
        samples.append(WeightSample(name=names[number], indices=tuple(indices.tolist()), values=tuple(values.tolist())))
    return tuple(samples)


def _sampled(
    sample: Sequence[WeightSample], parent: Weights, dtype: torch.dtype
) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for part in sample:
        trained = torch.tensor(part.values)
        yield trained, trained.to(dtype), parent[part.name].flatten()[torch.tensor(part.indices)]
