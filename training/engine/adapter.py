"""LoRA adapters: configuration, saving, merging."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from training.errors import InputRefused, RecipeError
from training.specs.artifacts import Manifest
from training.specs.post_training import ALL_LINEAR, LoraModelSection

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_README = """---
library_name: peft
license: other
license_name: terms-of-the-training-texts
---

# A LoRA adapter for one {asset}

It belongs to the `{asset}` whose content has the digest `{digest}`. On other weights it gives other answers, and no
library warns. The manifest beside this folder names the version. `sha256sum` of the right `model/`:

```
{files}
```

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
parent = AutoModelForCausalLM.from_pretrained("path/to/{asset}/model")
model = PeftModel.from_pretrained(parent, "path/to/adapter")
tokenizer = AutoTokenizer.from_pretrained("path/to/adapter")
```
"""


def lora_config(section: LoraModelSection, model: PreTrainedModel) -> LoraConfig:
    """PEFT's configuration of the recipe's adapter.

    Raises:
        RecipeError: A target module does not exist in the model, or is none that PEFT can adapt.
    """
    modules = adaptable(model)
    targets = sorted(modules) if section.target_modules == ALL_LINEAR else list(section.target_modules)
    unknown = sorted(set(targets) - modules.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], modules, n=1)
        raise RecipeError(
            f"lora_model.target_modules: the model has no {', '.join(unknown)}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f"; it has {', '.join(sorted(modules))}"
        )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=targets,
        bias="none",
        fan_in_fan_out=any(modules[name] is Conv1D for name in targets),
    )


def adaptable(model: PreTrainedModel) -> dict[str, type[torch.nn.Module]]:
    """The matrices that LoRA can adapt, without the head: the last part of each name, with the class of the module.

    GPT-2 and its relatives have their matrices in `Conv1D`, transposed.
    """
    head = model.get_output_embeddings()
    return {
        name.rsplit(".", 1)[-1]: Conv1D if isinstance(module, Conv1D) else torch.nn.Linear
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def save(folder: Path, model: PeftModel, weights: Mapping[str, torch.Tensor], parent: Manifest) -> None:
    """Write the adapter in PEFT's layout, in fp32, with the name of the model that it was trained on.

    PEFT's own writer puts the parent's path and a set in hash order into the configuration, so that two runs would not
    give the same bytes. Here the parent is named by its digests, because a path or a version's name would differ too.

    Args:
        folder: Created here.
        model: The trained model, for its configuration.
        weights: Its whole state dict, fp32.
        parent: Manifest of the model that the adapter belongs to.
    """
    folder.mkdir(parents=True)
    adapter = get_peft_model_state_dict(model, state_dict=dict(weights))
    digests = _weight_digests(parent)
    metadata = {
        "format": "pt",
        "parent": parent.asset,
        "parent_content": parent.digest,
        "parent_weights": json.dumps(digests, sort_keys=True),
    }
    save_file({name: value.contiguous() for name, value in adapter.items()}, folder / _WEIGHTS, metadata)
    _sort_metadata(folder / _WEIGHTS)

    # PEFT takes `base_model_name_or_path` for a path or a repository. A sentence is neither, so nothing is downloaded.
    fields = model.peft_config["default"].to_dict()
    fields |= {
        "base_model_name_or_path": f"the folder model/ of {parent.asset} with the content {parent.digest}: see "
        "README.md",
        "inference_mode": True,
        "target_modules": sorted(fields["target_modules"]),
    }
    (folder / _CONFIG).write_text(json.dumps(fields, indent=1, sort_keys=True, default=_plain), encoding="utf-8")
    (folder / "README.md").write_text(_readme(parent, digests), encoding="utf-8")


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place: its writer keeps them in the order of a hash map.

    The header is JSON behind its length (uint64, little-endian), filled up with spaces.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) != length:
            raise ValueError(f"the header of {path} was written in another form")
        file.seek(8)
        file.write(text)


def merge(base: PreTrainedModel, parent: Manifest, folder: Path) -> PreTrainedModel:
    """A model with a saved adapter added to its weights.

    Args:
        base: The model of `parent`.
        parent: Manifest of the version that the model was loaded from.
        folder: The adapter's.

    Raises:
        InputRefused: The adapter was trained on another model, or does not say on which.
    """
    _require_parent(folder, parent)
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def _require_parent(folder: Path, parent: Manifest) -> None:
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
    if json.loads(metadata.get("parent_weights", "{}")) != _weight_digests(parent):
        raise InputRefused(
            f"{folder} was trained on {metadata.get('parent', 'a model that it does not name')} with the "
            f"content {metadata.get('parent_content', '')[:12] or 'unknown'}, not on {parent.asset} "
            f"{parent.version} with {parent.digest[:12]}: its README.md says how to load it"
        )


def _weight_digests(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of each file of a model's weights, by name."""
    return {
        PurePosixPath(name).name: entry.sha256
        for name, entry in sorted(manifest.files.items())
        if name.startswith("model/") and name.endswith(".safetensors")
    }


def _readme(parent: Manifest, digests: Mapping[str, str]) -> str:
    files = "\n".join(f"{digest}  {name}" for name, digest in digests.items())
    return _README.format(asset=parent.asset, digest=parent.digest, files=files)


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
