"""Every architecture that comes in: the folder that is written answers as the one that was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.foreign import files_of, saved, tiny_model
from training.engine import isolation
from training.engine.imported_weights import logits_of, write_model, written_difference
from training.engine.model_import import import_model
from training.model_folder import load_model

_WINDOW = {"sliding_window": 8}
_NEOX = {"num_key_value_heads": 4}
# Each with what sets it apart: scaled rotary positions, windows, caps, partial rotary, biases, learned positions.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama 3.1": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    },
    "llama tied": {"tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mistral": {"model_type": "mistral", **_WINDOW},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16, **_WINDOW},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, **_WINDOW},
    "phi": {"model_type": "phi", "partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.25, **_NEOX},
    "olmo2": {"model_type": "olmo2"},
    "falcon": {"model_type": "falcon", "multi_query": True, "new_decoder_architecture": False, "alibi": False},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "head_dim": 16,
    },
}  # fmt: skip
# Documents that share a row see each other: these do not read position ids as transformers otherwise does.
NOT_ISOLATED = ("falcon",)
LENGTHS = (5, 40)  # the longer one is beyond every window and beyond the context before scaling


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_imported_model_answers_as_its_origin(name: str, tmp_path: Path) -> None:
    model = tiny_model(**ARCHITECTURES[name])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms begin as zeros and ones, which hides a loss of them
            parameter.add_(0.02 * torch.randn_like(parameter))
    rows = [torch.randint(3, 200, (length,)).tolist() for length in LENGTHS]
    folder = saved(model, tmp_path / "origin")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = logits_of(theirs, rows)

    imported = import_model(files_of(folder))
    write_model(imported, tmp_path / "written", (2,), 0)

    assert imported.parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert (
        max(float((a - b).abs().max()) for a, b in zip(logits_of(imported.model, rows), expected, strict=True)) < 1e-6
    )
    assert written_difference(tmp_path / "written", rows, expected) < 1e-6
    assert isolation.examine(load_model(tmp_path / "written")).isolated == (name not in NOT_ISOLATED)
