"""LoRA adapters: configuration, saving, merging."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from training.errors import RecipeError
from training.specs.post_training import LoraModelSection

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def lora_config(section: LoraModelSection, model: PreTrainedModel) -> LoraConfig:
    """PEFT's configuration of the recipe's adapter.

    Raises:
        RecipeError: A target module does not exist in the model, or is none that PEFT can adapt.
    """
    modules = adaptable(model)
    unknown = sorted(set(section.target_modules) - modules.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], modules, n=1)
        raise RecipeError(f"lora_model.target_modules: the model has no {', '.join(unknown)}"
                          + (f" (did you mean {near[0]}?)" if near else "")
                          + f"; it has {', '.join(sorted(modules))}")
    return LoraConfig(task_type="CAUSAL_LM", r=section.rank, lora_alpha=section.alpha, lora_dropout=section.dropout,
                      target_modules=list(section.target_modules), bias="none",
                      fan_in_fan_out=any(modules[name] is Conv1D for name in section.target_modules))


def adaptable(model: PreTrainedModel) -> dict[str, type[torch.nn.Module]]:
    """The last part of the names of all matrices that LoRA can adapt, but for the head, with the class of each.

    GPT-2 and its kin have their matrices in `Conv1D`, transposed.
    """
    head = model.get_output_embeddings()
    return {name.rsplit(".", 1)[-1]: Conv1D if isinstance(module, Conv1D) else torch.nn.Linear
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head}


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
