"""LoRA adapters: configuration, saving, merging."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel

from training.errors import RecipeError
from training.specs.post_training import LoraModelSection

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def lora_config(section: LoraModelSection, model: torch.nn.Module) -> LoraConfig:
    """PEFT's configuration of the recipe's adapter.

    Raises:
        RecipeError: A target module does not exist in the model.
    """
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules()
             if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    unknown = sorted(set(section.target_modules) - names)
    if unknown:
        raise RecipeError(f"lora_model.target_modules: the model has no {', '.join(unknown)}; it has "
                          f"{', '.join(sorted(names))}")
    return LoraConfig(task_type="CAUSAL_LM", r=section.rank, lora_alpha=section.alpha, lora_dropout=section.dropout,
                      target_modules=list(section.target_modules), bias="none")


def save(folder: Path, model: PeftModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the adapter in PEFT's layout, in fp32.

    PEFT's own writer puts the base model's path and a set in hash order into the configuration, so that two runs would
    not give the same bytes.

    Args:
        folder: Created here.
        model: The trained model, for its configuration.
        weights: Its whole state dict.
    """
    folder.mkdir(parents=True)
    adapter = get_peft_model_state_dict(model, state_dict=dict(weights))
    save_file({name: value.contiguous() for name, value in adapter.items()}, folder / _WEIGHTS, {"format": "pt"})
    fields = model.peft_config["default"].to_dict()
    fields |= {"base_model_name_or_path": None, "inference_mode": True,
               "target_modules": sorted(fields["target_modules"])}
    (folder / _CONFIG).write_text(json.dumps(fields, indent=1, sort_keys=True, default=_plain), encoding="utf-8")


def merge(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base model with a saved adapter added to its weights."""
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
