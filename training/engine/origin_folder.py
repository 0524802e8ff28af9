"""What a model folder of somebody else's says before its weights are read: configuration, files, generation settings.

Only safetensors are read, and no code. What is missing or contradicts itself is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from training.data.sources.origins import CONFIG, GENERATION, INDEX, ONE_FILE, WEIGHTS, OriginFiles
from training.errors import InputRefused
from training.tokenizer_folder import read_object

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the types that weights are read in."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
_CODE = "auto_map"
# Each says how a model is computed on some machine, and nothing of what it is.
DROPPED = (
    _CODE, "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "device_map",
)  # fmt: skip
_REFUSED = ("transformers_weights", "fusion_config")
_SUBCONFIGS = ("vision_config", "audio_config", "speech_config")
_NAMED = 5  # tensors in a message


def read_configuration(files: OriginFiles) -> tuple[dict[str, Any], list[str]]:
    """The configuration without what names code or a machine, and what was left out of it.

    Raises:
        InputRefused: There is none, or it describes nothing that can be imported.
    """
    path = files.folder / CONFIG
    if path not in files.model:
        raise InputRefused(f"{files.folder} holds no {CONFIG}{_instead(files)}")
    config = read_object(path)

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if _CODE in config:
            raise InputRefused(
                f"{path}: the model type {str(kind)[:60]!r} needs code of the folder (auto_map), and no code of it is "
                "run; take a model that transformers knows"
            )
        raise InputRefused(
            f"{path}: transformers {_version()} has no architecture {str(kind)[:60]!r}; take a model that it knows"
        )
    for key in _REFUSED:
        if key in config:
            raise InputRefused(f"{path}: {key} is refused: a model is read from its safetensors alone")
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise InputRefused(
            f"{path}: the weights are quantised ({str(method)[:40]}) and cannot be trained; take the folder with the "
            "weights in bf16, or a GGUF file"
        )
    _require_causal(path, config, kind)

    notes = [f"{key} of {CONFIG} is left out: no code of a folder is run" for key in (_CODE,) if key in config]
    return {key: value for key, value in config.items() if key not in DROPPED}, notes


def _require_causal(path: Path, config: Mapping[str, Any], kind: str) -> None:
    if part := next((name for name in _SUBCONFIGS if config.get(name)), ""):
        raise InputRefused(f"{path}: it has a {part}: models of pictures or sound are not imported, only those of text")
    config_class = CONFIG_MAPPING[kind]
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[config_class] if has_causal_class(config_class) else None
    if causal is None or (names and causal.__name__ not in names and not _is_causal_name(names)):
        raise InputRefused(
            f"{path}: {', '.join(names)[:100] or kind} is no causal language model; take one whose class ends in "
            "ForCausalLM, or GPT2LMHeadModel"
        )


def has_causal_class(config_class: type) -> bool:
    """Whether transformers has a causal language model of a configuration's class."""
    return config_class in MODEL_FOR_CAUSAL_LM_MAPPING


def _is_causal_name(names: Sequence[str]) -> bool:
    return any(name.endswith("ForCausalLM") for name in names)


def _instead(files: OriginFiles) -> str:
    """What a folder without a model holds, in words."""
    names = [*files.left_out, *(path.name for path in files.tokenizer)]
    if "adapter_config.json" in names:
        return ": it is an adapter; merge it into its model first, and import that"
    if ggufs := [name for name in files.left_out if name.lower().endswith(".gguf")]:
        return f"; name one of its GGUF files as `gguf`: {some(ggufs)}"
    return "; give the folder that save_pretrained wrote"


def read_tensors(files: OriginFiles) -> dict[str, int]:
    """Type to number of tensors, by the headers of the files.

    Raises:
        InputRefused: There are no safetensors, a shard is missing or damaged, or the index says something else.
    """
    paths = [path for path in files.model if WEIGHTS.fullmatch(path.name)]
    names = {path.name for path in paths}
    if not paths:
        pickles = [name for name in files.left_out if name.endswith(_PICKLES)]
        if pickles:
            raise InputRefused(
                f"{files.folder} holds its weights as pickles only ({some(pickles)}), which can run code; save them "
                "as safetensors:\n  AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another_folder)"
            )
        if files.folder / INDEX not in files.model:
            raise InputRefused(f"{files.folder} holds no weights in safetensors ({ONE_FILE}){_instead(files)}")

    holders: dict[str, str] = {}
    kinds: dict[str, int] = {}
    index = _index(files) if ONE_FILE not in names else None
    for path in paths:
        try:
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 -- it is no dictionary
                    kind = weights.get_slice(name).get_dtype()
                    if name in holders:
                        raise InputRefused(f"{path}: the tensor {name} is in {holders[name]} too")
                    holders[name] = path.name
                    kinds[kind] = kinds.get(kind, 0) + 1
        except (SafetensorError, OSError, ValueError) as error:
            raise InputRefused(
                f"{path} is damaged or cut short ({path.stat().st_size:,} bytes): {str(error)[:160]}; fetch it again"
            ) from error

    if index is not None and index != holders:
        wrong = sorted(name for name in index.keys() | holders.keys() if index.get(name) != holders.get(name))
        first = wrong[0]
        raise InputRefused(
            f"{files.folder / INDEX} is not the index of these files: it puts {len(wrong)} tensors elsewhere, such as "
            f"{first} into {index.get(first, 'no file')}, which is in {holders.get(first, 'none')}"
        )
    unknown = sorted(kind for kind in kinds if kind not in FLOATS and not kind.startswith(("I", "U", "BOOL")))
    if unknown:
        raise InputRefused(f"{files.folder}: weights of the type {', '.join(unknown)} are not read; take bf16 or fp32")
    return kinds


def _index(files: OriginFiles) -> dict[str, str]:
    """Tensor to file by the index.

    Raises:
        InputRefused: It is missing or malformed, or a file that it names is missing.
    """
    path = files.folder / INDEX
    if path not in files.model:
        raise InputRefused(f"{files.folder} holds shards and no {INDEX}; fetch it again")
    index = read_object(path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise InputRefused(f"{path} holds no weight_map of tensor to file")
    names = {file.name for file in files.model}
    missing = sorted(file for file in set(index.values()) if file not in names or not WEIGHTS.fullmatch(file))
    if missing:
        raise InputRefused(
            f"{files.folder}: {len(missing)} of the {len(set(index.values()))} files that {INDEX} names are missing: "
            f"{some(missing)}; fetch them"
        )
    return dict(index)


def read_generation(files: OriginFiles, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The generation settings that can be saved, and what was repaired.

    A setting that contradicts another one is an error of transformers when a model is saved: after all the training.
    """
    path = files.folder / GENERATION
    if path not in files.model:
        return {}, []
    given = {key: value for key, value in read_object(path).items() if key not in ("transformers_version", _CODE)}
    given.pop("_from_model_config", None)
    return _savable(given, path.name)


def _savable(given: dict[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    reason = _refusal(given)
    if not reason:
        return given, []
    # Without sampling, the settings of sampling mean nothing: they are what contradicts.
    sampling = {"temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"}
    left_out = sorted(sampling & given.keys())
    kept = {key: value for key, value in given.items() if key not in sampling}
    if _refusal(kept):
        kept = {key: given[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in given}
        left_out = sorted(given.keys() - kept.keys())
    return kept, [f"{name} cannot be saved as it is; left out of it: {', '.join(left_out)}"]


def _refusal(settings: Mapping[str, Any]) -> str:
    """Why transformers does not save generation settings; empty if it does."""
    with TemporaryDirectory() as folder:
        try:
            GenerationConfig(**settings).save_pretrained(folder)
        except Exception as error:  # settings that make no sense lead to errors of every kind
            return str(error)[:200] or type(error).__name__
    return ""


def read_ends(generation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids of the tokens that end a text, by the generation settings and then the configuration."""
    ends: list[int] = []
    for settings in (generation, config):
        given = settings.get("eos_token_id")
        ends += [end for end in (given if isinstance(given, list) else [given]) if isinstance(end, int)]
    return tuple(dict.fromkeys(ends))


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _version() -> str:
    import transformers

    return str(transformers.__version__)
