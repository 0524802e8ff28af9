"""LoRA on matrices of every kind, and merged as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.engine import adapter
from training.errors import RecipeError
from training.specs.artifacts import FileEntry, Manifest
from training.specs.optimization import Optimizer
from training.specs.post_training import LoraModelSection

GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def build(fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**fields, vocab_size=99, bos_token_id=None, eos_token_id=0, pad_token_id=1)
    )
    assert isinstance(model, PreTrainedModel)
    return model


PARENT = Manifest(
    asset="dpo_model",
    version="1",
    stage="dpo_model",
    recipe="unit",
    identity="i",
    fingerprint="f",
    digest="d" * 64,
    files={"model/model.safetensors": FileEntry(bytes=1, sha256="0" * 64)},
    inputs={},
    metrics={},
    section={},
    seed=0,
    started_at=0.0,
    seconds=0.0,
)


def section(*names: str) -> LoraModelSection:
    return LoraModelSection(
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=0), steps=1, rank=2, alpha=4, target_modules=names
    )


@pytest.mark.parametrize(
    ("fields", "names", "transposed"), [(LLAMA, ("q_proj", "down_proj"), False), (GPT2, ("c_attn", "c_proj"), True)]
)
def test_a_merged_adapter_is_the_weight_and_the_product(
    tmp_path: Path, fields: dict[str, Any], names: tuple[str, ...], transposed: bool
) -> None:
    """bf16(W + alpha / rank B A), bit for bit."""
    base, trained = build(fields), build(fields)
    model = get_peft_model(trained, adapter.lora_config(section(*names), trained))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    adapter.save(tmp_path / "adapter", model, model.state_dict(), PARENT)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    merged = adapter.merge(base, PARENT, tmp_path / "adapter").state_dict()

    changed = 0
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in saved:
            product = 2 * (saved[f"{key}.lora_B.weight"] @ saved[f"{key}.lora_A.weight"])
            weight = weight + (product.T if transposed else product)
            changed += 1
        assert torch.equal(merged[name].bfloat16(), weight.bfloat16()), name
    assert changed == (4 if fields is LLAMA else 6)


def test_a_module_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match=r"no c_atn \(did you mean c_attn\?\); it has c_attn, c_fc, c_proj"):
        adapter.lora_config(section("c_atn"), build(GPT2))
    with pytest.raises(RecipeError, match=r"no lm_head; it has down_proj, gate_proj"):
        adapter.lora_config(section("lm_head"), build(LLAMA))


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    """The library keeps a file's metadata in a hash map, whose order differs from one file to the next."""
    model = get_peft_model(build(LLAMA), adapter.lora_config(section("q_proj"), build(LLAMA)))
    for number in range(12):
        adapter.save(tmp_path / str(number), model, model.state_dict(), PARENT)
    written = {(folder / "adapter_model.safetensors").read_bytes() for folder in tmp_path.iterdir()}
    assert len(written) == 1
