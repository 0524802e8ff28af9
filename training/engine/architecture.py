"""Models from an architecture of the recipe, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.engine import runtime
from training.engine.architecture_fields import architecture_problems
from training.engine.causality import NOT_CAUSAL, is_causal
from training.engine.session import Session
from training.errors import RecipeError
from training.job.outcome import is_out_of_memory


def untrained_model(session: Session, architecture: Mapping[str, Any], rows: int) -> PreTrainedModel:
    """A model with seeded random weights in fp32, the same under every layout.

    Args:
        session: Its tokenizer decides the special tokens.
        architecture: `model_type` and fields of its configuration.
        rows: Of the embedding: at least as many as the tokenizer has tokens.

    Raises:
        RecipeError: transformers cannot build it, or would build another model than the fields say, or one that is not
            causal.
    """
    _refuse_another_model(architecture)
    # Fields that the tokenizer decides. Each default of transformers belongs to some other tokenizer.
    fields: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": session.tokenizer.eos_token_id,
        "pad_token_id": session.pad,
        **architecture,
        "vocab_size": rows,
    }
    try:
        config = AutoConfig.for_model(**fields)
        runtime.seed_everything(session.context.seed)  # without the rank: all ranks must have the same weights
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=session.choice.attention
        )
    except Exception as error:  # fields that make no sense lead to errors of every kind
        if is_out_of_memory(error):
            raise
        raise RecipeError(f"base_model.architecture: transformers cannot build this model: {error}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def _refuse_another_model(architecture: Mapping[str, Any]) -> None:
    """Refuse what the recipe check refuses before a run: a job that was written by hand has seen no check."""
    for field, message in architecture_problems(architecture):
        raise RecipeError(f"base_model.architecture.{field}: {message}")
    if is_causal(architecture) is False:
        raise RecipeError(f"base_model.architecture.model_type: {NOT_CAUSAL.format(architecture['model_type'])}")
