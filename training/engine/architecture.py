"""Models from an architecture of the recipe, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.engine import runtime
from training.engine.session import Session
from training.errors import RecipeError


def untrained_model(session: Session, architecture: Mapping[str, Any]) -> PreTrainedModel:
    """A model with seeded random weights in fp32, the same under every layout.

    Args:
        session: Its tokenizer decides the vocabulary and the special tokens.
        architecture: `model_type` and fields of its configuration.

    Raises:
        RecipeError: transformers cannot build it.
    """
    fields: dict[str, Any] = {"bos_token_id": None, "eos_token_id": session.tokenizer.eos_token_id,
                              "pad_token_id": session.pad, **architecture, "vocab_size": len(session.tokenizer)}
    try:
        config = AutoConfig.for_model(**fields)
        runtime.seed_everything(session.context.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32,
                                                 attn_implementation=session.choice.attention)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"base_model.architecture: transformers cannot build this model: {error}") from error
    assert isinstance(model, PreTrainedModel)
    return model
