"""Model and tokenizer folders: their content is checked before any library reads it.

transformers lets a folder decide what is loaded: pickles beside the weights, an adapter that names another folder,
Python files, a kernel or a quantizer to fetch, a class of tokenizer. A folder that Gatehouse wrote holds none of these,
so a folder that holds one is not read at all.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

# huggingface_hub reads it once, at its import. A folder must not make a library ask the network for a missing file.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from training.data.conversations.chat_format import is_own_vocabulary
from training.data.conversations.chat_template import MORE_TEMPLATES, TEMPLATE_FILE
from training.data.conversations.tokenizer_files import files_of
from training.data.tokens.byte_bpe import read_tokenizer
from training.errors import InputRefused
from training.job.bounded_memory import bounded_memory
from training.specs.tokenizer import END_OF_TEXT, END_OF_TURN

# Arguments of every call that loads a model.
SAFELY: dict[str, Any] = {
    "local_files_only": True,
    "trust_remote_code": False,
    "use_safetensors": True,
    "attn_implementation": "sdpa",
}
MAX_JSON_BYTES = 16 * 2**20  # the index of a model of 100,000 tensors has 10 MB
# A model of more layers than it has tensors does not exist, but some configurations name layers they never build.
_SPARE_LAYERS = 1000
# Loading takes a file in its own precision and again in fp32. A configuration that needs more describes other weights.
_MEMORY_PER_BYTE = 4
_MEMORY = 2**30

_CONFIG, _GENERATION, _INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_TOKENIZER_FILES = (_TOKENIZER, _TOKENIZER_CONFIG, TEMPLATE_FILE, "README.md")
_SECOND_TEMPLATE = "training.jinja"
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
_TOKENIZER_KEYS = {
    "tokenizer_class",
    "backend",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "additional_special_tokens",
    "extra_special_tokens",
    "clean_up_tokenization_spaces",
    "is_local",
    "local_files_only",
    "model_max_length",
}
_TOKENIZER_CLASSES = (None, "PreTrainedTokenizerFast", "TokenizersBackend")


def plain_model(folder: Path) -> Path:
    """The same folder, after everything in it was checked.

    Raises:
        InputRefused: It holds something that Gatehouse does not write, or a file is damaged or absurd.
    """
    _only_files(folder, (*_TOKENIZER_FILES, _CONFIG, _GENERATION, _INDEX), _WEIGHTS)

    config, generation = _read(folder / _CONFIG), _read(folder / _GENERATION)
    for key in REFUSED_KEYS:
        if key in config:
            raise InputRefused(
                f"{folder / _CONFIG}: {key} is refused: a model is read from its safetensors alone, and "
                "no code of it is run"
            )
    _only_keys(folder / _GENERATION, generation, _GENERATION_KEYS)

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
    kind = str(_read(folder / _CONFIG).get("model_type"))
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
            f"transformers cannot load {folder} (config.json, or weights that do not fit it): {_brief(error)}"
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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a folder, as transformers sees it: one that was trained here, or that an import wrote.

    Raises:
        InputRefused: There is none, or it is something else.
    """
    read_tokenizer(folder / _TOKENIZER)
    config = _read(folder / _TOKENIZER_CONFIG)
    _only_keys(folder / _TOKENIZER_CONFIG, config, _TOKENIZER_KEYS)
    if config.get("tokenizer_class") not in _TOKENIZER_CLASSES:
        raise InputRefused(f"{folder / _TOKENIZER_CONFIG}: tokenizer_class must be {_TOKENIZER_CLASSES[1]}")
    for other in ("special_tokens_map.json", "added_tokens.json"):
        if (folder / other).exists():
            raise InputRefused(f"{folder / other} is no part of a tokenizer; tokenizer.json holds all of it")
    _only_second_template(folder)

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises errors of every kind
        raise InputRefused(f"{folder}: transformers cannot load this tokenizer: {_brief(error)}") from error


def is_own_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has the special tokens of those that are trained here."""
    return is_own_vocabulary(tokenizer.get_vocab())


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has a chat template, or the special tokens of Gatehouse's own."""
    return bool(tokenizer.chat_template) or is_own_tokenizer(tokenizer)


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that a tokenizer puts before a text; None where it puts none."""
    start = tokenizer.bos_token_id
    return int(start) if start is not None and files_of(tokenizer).has_start else None


def used_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of an embedding up to that of the last token; a model may have more, and nothing ever trained them."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def tokenizer_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that end a turn or a text, by the tokenizer alone."""
    if is_own_tokenizer(tokenizer):
        return tuple(int(tokenizer.convert_tokens_to_ids(token)) for token in (END_OF_TURN, END_OF_TEXT))
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def _only_files(folder: Path, names: tuple[str, ...], pattern: re.Pattern[str]) -> None:
    if not folder.is_dir():
        raise InputRefused(f"{folder} is not a folder")
    _only_second_template(folder)
    for path in sorted(folder.iterdir()):
        if path.name == MORE_TEMPLATES:
            continue
        if not path.is_file() or not (path.name in names or pattern.fullmatch(path.name)):
            raise InputRefused(
                f"{path} is no part of a plain model folder: only safetensors, JSON, the chat template "
                "and README.md are; remove it, or train the model again"
            )


def _only_second_template(folder: Path) -> None:
    """Refuse templates beside the usual one, but for the one that Gatehouse writes."""
    more = folder / MORE_TEMPLATES
    if more.exists():
        for path in more.iterdir() if more.is_dir() else [more]:
            if path.name != _SECOND_TEMPLATE or not path.is_file():
                raise InputRefused(f"{path} is no part of a tokenizer: {MORE_TEMPLATES} holds {_SECOND_TEMPLATE} alone")


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputRefused(f"{path} is larger than {MAX_JSON_BYTES >> 20} MB")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path} is not JSON: {_brief(error)}") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{path} holds no JSON object")
    return value


def _only_keys(path: Path, value: dict[str, Any], keys: set[str]) -> None:
    if unknown := sorted(set(value) - keys):
        raise InputRefused(
            f"{path}: {', '.join(unknown)[:100]} is refused; the keys here are {', '.join(sorted(keys))}"
        )


def _count_tensors(folder: Path) -> int:
    """Number of tensors by the headers of the weights' files, which the library checks against the files' sizes."""
    if (folder / _INDEX).exists():
        named = _read(folder / _INDEX).get("weight_map")
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
                raise InputRefused(f"{path} is damaged: {_brief(error)}") from error
    if not count:
        raise InputRefused(f"{folder} holds no weights in safetensors")
    return count


def _brief(error: Exception) -> str:
    """The beginning of an error's message; a library may put a whole file into one."""
    return str(error).strip()[:300] or type(error).__name__
