"""Whether documents that share a row see each other, measured on a model's logits.

Position ids restart at every document of a row, and most architectures of transformers keep the documents apart by
that. Some ignore position ids and others carry a state from token to token, and none says so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

_LENGTH = 8
# How far the second document's logits may move, relative to how far they move where it is meant to see the first one.
# Rounding is about 1e-6 of that. A whole document's logits may also differ by the rounding of another shape.
_MOVED, _DIFFERENT = 1e-4, 1e-3


@dataclass(frozen=True)
class Isolation:
    """Whether documents in one row are kept apart.

    Attributes:
        reason: What was measured, in words.
    """

    isolated: bool
    reason: str


@torch.no_grad()
def examine(model: PreTrainedModel) -> Isolation:
    """Exchange the tokens of the first of two documents in a row, and look at the logits of the second.

    They must not move, and must be those of the document alone. For comparison the same two rows are read as one
    document, in which the second half does depend on the first. That shows how far a leak would move them, whatever the
    scale of the weights. Where nothing moves there either, nothing is known, and the answer is no.

    Afterwards the model, its mode and all random numbers are as before.

    Args:
        model: On the device, and with the kernels and the attention, that it will be trained with.
    """
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            return _examine(model)
    finally:
        model.train(was_training)


def _examine(model: PreTrainedModel) -> Isolation:
    vocabulary = model.config.get_text_config().vocab_size
    first, other, second = (
        torch.arange(start, start + _LENGTH) * step % vocabulary for start, step in ((1, 7), (3, 11), (5, 13))
    )
    rows = torch.stack([torch.cat([first, second]), torch.cat([other, second])]).to(model.device)
    restarting = torch.arange(_LENGTH, device=model.device).repeat(2)
    running = torch.arange(2 * _LENGTH, device=model.device)

    try:
        packed = _logits(model, rows, restarting)[:, _LENGTH:]
    except TypeError as error:
        return Isolation(False, f"{model.config.model_type} takes no position ids ({error})")
    whole = _logits(model, rows, running)[:, _LENGTH:]
    alone = _logits(model, rows[:1, _LENGTH:], restarting[:_LENGTH])

    seen, moved = _distance(whole[0], whole[1]), _distance(packed[0], packed[1])
    different = _distance(packed[0], alone[0])
    if not seen > 0:
        return Isolation(
            False, "whether documents see each other cannot be told: no token's logits depend on the tokens before it"
        )
    if not moved <= _MOVED * seen:  # written so that NaN counts as a leak
        return Isolation(
            False, f"documents in one row see each other: exchanging one moves the next one's logits by {moved:.2g}"
        )
    if not different <= _DIFFERENT * seen:
        return Isolation(
            False, f"a document's logits in a row are not those it has alone: they differ by {different:.2g}"
        )
    return Isolation(
        True, f"documents in one row do not see each other: exchanging one moves the next one's logits by {moved:.2g}"
    )


def _logits(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits, float32 [rows, length, vocabulary], of token ids [rows, length] at positions [length]."""
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions.expand(len(ids), -1), use_cache=False).logits
    return logits.float()


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def shrunken(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a configuration with as few layers as hold one of every kind, and two at least."""
    smaller = copy.deepcopy(config)
    text = smaller.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    count = next((size for size in range(2, len(kinds)) if set(kinds[:size]) == set(kinds)), len(kinds) or 2)
    text.num_hidden_layers = min(count, text.num_hidden_layers)
    return smaller
