"""Whether a model is causal: what it says of a token must not depend on what comes after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

ATTENTION = ("sdpa", "eager")
"""transformers' attention implementations, the faster one first; not every architecture has it."""

NOT_CAUSAL = (
    "{} is not causal: what it says of a token depends on the tokens after it; take a causal one, such as llama"
)

_TOKENS = 12
_VOCABULARY = 64
_MOVED = 1e-4
_SHARPER = 3.0
_LARGEST = 60_000_000  # parameters
# The same architecture, narrow and shallow; each name is used where a configuration has it as a number.
_SMALL = {
    "vocab_size": _VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_layers": 2, "n_heads": 4, "d_model": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "num_layers": 2,
    "num_heads": 4, "rotary_dim": 4,
}  # fmt: skip
_OWN = {"vocab_size": _VOCABULARY}
_SHALLOW = {name: value for name, value in _SMALL.items() if "layer" in name or name == "vocab_size"}


def build(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration in fp32, on the current device, with the first attention that it supports."""
    for attention in ATTENTION[:-1]:
        try:
            return _built(config, attention)
        except ValueError:  # a model without it says so in one
            continue
    return _built(config, ATTENTION[-1])


def looks_ahead(model: PreTrainedModel) -> bool:
    """Whether another last token changes the logits of the tokens before it.

    The model is left in evaluation mode. No random numbers are drawn.

    Raises:
        ValueError: The last token does not even change its own logits, so that the trial shows nothing.
    """
    device = model.get_input_embeddings().weight.device
    tokens = torch.arange(6, 6 + _TOKENS, device=device)[None]
    other = tokens.clone()
    other[0, -1] += _TOKENS
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
        changed = model(input_ids=other, use_cache=False).logits
    moved = (logits - changed).abs().amax(-1)[0]

    if not bool(moved[-1] > 0):
        raise ValueError("another last token changes nothing")
    return bool(moved[:-1].max() > _MOVED)


def is_causal(architecture: Mapping[str, Any]) -> bool | None:
    """Whether a small model of an architecture is causal; None where no small one can be made.

    The architecture's kind and switches decide that, and not its size.
    """
    for sizes in (_SMALL, _SHALLOW, _OWN):
        try:
            model = _small(architecture, sizes)
            return None if model is None else not looks_ahead(model)
        except Exception:  # this kind cannot have one of the sizes; the next attempt keeps more of the recipe's own
            continue
    return None


def _small(architecture: Mapping[str, Any], sizes: Mapping[str, int]) -> PreTrainedModel | None:
    """The architecture with other sizes and sharpened random weights; None where it would still be large."""
    own = AutoConfig.for_model(**architecture).to_dict()
    kept = {name: value for name, value in architecture.items() if not isinstance(value, list | tuple)}
    smaller = {name: size for name, size in sizes.items() if isinstance(own.get(name), int)}
    config = AutoConfig.for_model(**{**kept, **smaller, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1})
    with torch.device("meta"):
        if sum(parameter.numel() for parameter in build(config).parameters()) > _LARGEST:
            return None
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # small random weights make attention nearly even, which hides where it looks
                parameter.mul_(_SHARPER)
    return model


def _built(config: PretrainedConfig, attention: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    assert isinstance(model, PreTrainedModel)
    return model
