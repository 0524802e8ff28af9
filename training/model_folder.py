"""Model folders: their content is checked before any library reads it.

transformers lets a folder decide what is loaded: pickles beside the weights, an adapter that names another folder,
Python files, a kernel or a quantizer to fetch, a class of tokenizer. A folder that Gatehouse wrote holds none of these,
so a folder that holds one is not read at all.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: see tokenizer_folder

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from training.data.conversations.chat_template import MORE_TEMPLATES
from training.errors import InputRefused
from training.job.bounded_memory import bounded_memory
from training.tokenizer_folder import TOKENIZER_FILES, brief, only_keys, only_second_template, read_object

# Arguments of every call that loads a model.
SAFELY: dict[str, Any] = {
    "local_files_only": True,
    "trust_remote_code": False,
    "use_safetensors": True,
    "attn_implementation": "sdpa",
}
# A model of more layers than it has tensors does not exist, but some configurations name layers they never build.
_SPARE_LAYERS = 1000
# Loading takes a file in its own precision and again in fp32. A configuration that needs more describes other weights.
_MEMORY_PER_BYTE = 4
_MEMORY = 2**30

_CONFIG, _GENERATION, _INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
# Each makes transformers load something that is not in the folder's safetensors, or run something of it.
REFUSED_KEYS = (
    "auto_map",
    "quantization_config",
    "transformers_weights",
    "fusion_config",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
_GENERATION_KEYS = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "suppress_tokens",
    "use_cache",
    "transformers_version",
    "_from_model_config",
}


def plain_model(folder: Path) -> Path:
    """The same folder, after everything in it was checked.

    Raises:
        InputRefused: It holds something that Gatehouse does not write, or a file is damaged or absurd.
    """
    _only_files(folder, (*TOKENIZER_FILES, _CONFIG, _GENERATION, _INDEX), _WEIGHTS)

    config, generation = read_object(folder / _CONFIG), read_object(folder / _GENERATION)
    for key in REFUSED_KEYS:
        if key in config:
            raise InputRefused(
                f"{folder / _CONFIG}: {key} is refused: a model is read from its safetensors alone, and "
                "no code of it is run"
            )
    only_keys(folder / _GENERATION, generation, _GENERATION_KEYS)

    # A configuration of a billion layers would be built layer by layer before anything noticed.
    tensors = _count_tensors(folder)
    for key, value in config.items():
        if "layer" in key and isinstance(value, int) and value > tensors + _SPARE_LAYERS:
            raise InputRefused(f"{folder / _CONFIG}: {key} is {value:,}, and the weights are {tensors:,} tensors")
    return folder


def load_model(folder: Path) -> PreTrainedModel:
    """The model in a folder, in float32 on the CPU and in evaluation mode.

    Raises:
        InputRefused: The folder is no plain one, or its weights are not those that its configuration asks for.
    """
    size = sum(path.stat().st_size for path in plain_model(folder).iterdir() if path.is_file())
    kind = str(read_object(folder / _CONFIG).get("model_type"))
    try:
        with bounded_memory(_MEMORY_PER_BYTE * size + _MEMORY):
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                **SAFELY | {"attn_implementation": best_attention(kind)},
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # a configuration that makes no sense leads to errors of every kind
        raise InputRefused(
            f"transformers cannot load {folder} (config.json, or weights that do not fit it): {brief(error)}"
        ) from error

    # transformers would draw missing weights at random and ignore the others.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise InputRefused(
                f"{folder}: the weights do not fit config.json: {kind.replace('_', ' ')} "
                f"{', '.join(map(str, sorted(report[kind])[:5]))}"
            )
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def best_attention(model_type: str) -> str:
    """transformers' attention implementation for a model type: torch's scaled dot product where it is implemented."""
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "sdpa"  # refused where the model is built
    return "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]._supports_sdpa else "eager"


def _only_files(folder: Path, names: tuple[str, ...], pattern: re.Pattern[str]) -> None:
    if not folder.is_dir():
        raise InputRefused(f"{folder} is not a folder")
    only_second_template(folder)
    for path in sorted(folder.iterdir()):
        if path.name == MORE_TEMPLATES:
            continue
        if not path.is_file() or not (path.name in names or pattern.fullmatch(path.name)):
            raise InputRefused(
                f"{path} is no part of a plain model folder: only safetensors, JSON, the chat template "
                "and README.md are; remove it, or train the model again"
            )


def _count_tensors(folder: Path) -> int:
    """Number of tensors by the headers of the weights' files, which the library checks against the files' sizes."""
    if (folder / _INDEX).exists():
        named = read_object(folder / _INDEX).get("weight_map")
        files = {str(file) for file in named.values()} if isinstance(named, dict) else {""}
        for name in sorted(files):
            if not (_WEIGHTS.fullmatch(name) and (folder / name).is_file()):
                raise InputRefused(f"{folder / _INDEX}: there is no weight file {name[:100]!r}")

    count = 0
    for path in sorted(folder.iterdir()):
        if _WEIGHTS.fullmatch(path.name):
            try:
                with safe_open(path, framework="pt") as weights:
                    count += len(weights.keys())
            except (SafetensorError, OSError, ValueError) as error:
                raise InputRefused(f"{path} is damaged: {brief(error)}") from error
    if not count:
        raise InputRefused(f"{folder} holds no weights in safetensors")
    return count
