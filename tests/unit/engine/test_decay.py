"""Weight decay is for matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from training.engine.trainer import StepOrdered

_WIDE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def decayed(model_type: str, fields: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Last parts of the names of what decays, and of what does not."""
    config = AutoConfig.for_model(
        model_type, vocab_size=99, bos_token_id=None, eos_token_id=0, pad_token_id=1, **fields
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    chosen = set(StepOrdered.get_decay_parameter_names(object.__new__(StepOrdered), model))
    names = {name for name, _ in model.named_parameters()}
    short = [{".".join(name.split(".")[-2:]) for name in some} for some in (chosen, names - chosen)]
    return short[0], short[1]


def test_norms_do_not_decay() -> None:
    yes, no = decayed("llama", _WIDE)
    assert yes == {
        "embed_tokens.weight",
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
        "o_proj.weight",
        "gate_proj.weight",
        "up_proj.weight",
        "down_proj.weight",
        "lm_head.weight",
    }
    assert no == {"input_layernorm.weight", "post_attention_layernorm.weight", "norm.weight"}


@pytest.mark.parametrize(
    ("model_type", "fields", "kept"),
    [
        (
            "jamba",
            _WIDE
            | {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "num_experts": 2,
                "use_mamba_kernels": False,
            },
            {"mamba.A_log", "mamba.D", "dt_proj.bias", "conv1d.bias", "dt_layernorm.weight"},
        ),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4}, {"ln_1.weight", "ln_f.bias", "c_attn.bias"}),
        (
            "qwen3_next",
            _WIDE
            | {
                "head_dim": 8,
                "layer_types": ["linear_attention", "full_attention"],
                "num_experts": 2,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            {"linear_attn.A_log", "linear_attn.dt_bias", "norm.weight", "q_norm.weight"},
        ),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 1}, {"attention.time_decay", "attention.time_mix_key"}),
    ],
)
def test_states_scales_and_shifts_do_not_decay(model_type: str, fields: dict[str, Any], kept: set[str]) -> None:
    yes, no = decayed(model_type, fields)
    assert kept <= no
    assert not {name for name in yes if "norm" in name or name.endswith("bias") or name.endswith((".D", "A_log"))}
    assert any(name.endswith(("proj.weight", "c_attn.weight", "key.weight")) for name in yes)
