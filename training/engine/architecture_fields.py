"""A recipe's architecture, checked against transformers: names, values, and which fields Gatehouse decides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from training.model_folder import REFUSED_KEYS

Problem = tuple[str, str]
"""A field of the architecture, and what is wrong with it."""

_ELSEWHERE = {
    "vocab_size": "set tokenizer.vocabulary",
    "bos_token_id": "leave it out", "eos_token_id": "leave it out", "pad_token_id": "leave it out",
    "dtype": "set base_model.precision", "torch_dtype": "set base_model.precision",
    "use_cache": "leave it out", "return_dict": "leave it out", "output_attentions": "leave it out",
    "output_hidden_states": "leave it out", "architectures": "leave it out", "transformers_version": "leave it out",
    "is_encoder_decoder": "leave it out",
}  # fmt: skip
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "head_dim",
    "max_position_embeddings",
)
_LONGEST = 200


def architecture_problems(architecture: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the fields of an architecture, before a model is built.

    transformers would keep a field that it does not know, and build a model without it.
    """
    kind = str(architecture["model_type"])
    if problem := _kind_problem(kind):
        yield "model_type", problem
        return

    ours = set(_ELSEWHERE) | set(REFUSED_KEYS) | {"model_type"}
    for field in architecture:
        if field in REFUSED_KEYS or field.startswith("_"):
            yield field, "it is refused: a model is built from its configuration alone, and no code of it is run"
        elif field in _ELSEWHERE:
            yield field, f"Gatehouse decides this one; {_ELSEWHERE[field]}"

    default = AutoConfig.for_model(kind)
    valid = _field_names(default)
    synonyms = dict(type(default).attribute_map)
    for field in (field for field in architecture if field not in ours and not field.startswith("_")):
        if field in synonyms and synonyms[field] in architecture:
            yield field, f"for {kind} it is another name of {synonyms[field]}, which is given too; write one of them"
        elif field not in valid | set(synonyms) and _is_merely_kept(kind, field, architecture[field]):
            close = difflib.get_close_matches(field, sorted(valid - ours), n=1)
            yield field, f"{kind} has no such field" + (f"; did you mean {close[0]}?" if close else "")
    yield from _size_problems(architecture, synonyms)


def configure(fields_: Mapping[str, Any]) -> tuple[PretrainedConfig | None, Problem | None]:
    """The configuration of `model_type` and its fields, or the field that transformers refuses and why."""
    try:
        return AutoConfig.for_model(**fields_), None
    except Exception as error:  # fields that make no sense lead to errors of every kind
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        named = re.search(r"field '(\w+)'", lines[0])
        field = named[1] if named and named[1] in fields_ else ""
        return None, (field, re.sub(r"^\w*Error: ", "", lines[-1])[:_LONGEST])


def position_field(config: PretrainedConfig) -> tuple[str, int] | None:
    """The field that says how many positions a model has, under its own name, and their number; None without one."""
    for name in ("max_position_embeddings", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return str(type(config).attribute_map.get(name, name)), value
    return None


def _kind_problem(kind: str) -> str:
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return ""
    if kind in CONFIG_MAPPING:
        return f"transformers has no causal language model of the kind {kind}; one is llama"
    close = difflib.get_close_matches(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=1)
    return f"transformers knows no model of the kind {kind}" + (f"; did you mean {close[0]}?" if close else "")


def _field_names(default: PretrainedConfig) -> set[str]:
    return set(default.to_dict()) | {field.name for field in fields(default)}


def _is_merely_kept(kind: str, field: str, value: Any) -> bool:
    """Whether a configuration keeps a field as it is; older names that it understands become something else."""
    config, problem = configure({"model_type": kind, field: value})
    return config is None or problem is not None or field in config.to_dict()


def _size_problems(architecture: Mapping[str, Any], synonyms: Mapping[str, str]) -> Iterator[Problem]:
    sizes = {}
    for name in _SIZES:
        field = next((key for key in (name, synonyms.get(name, name)) if key in architecture), None)
        if field is None or architecture[field] is None or isinstance(architecture[field], list | tuple):
            continue  # some kinds take one size a layer
        value = architecture[field]
        if isinstance(value, bool) or not isinstance(value, int):
            yield field, f"{value!r} is not a whole number"
        elif value < 1:
            yield field, f"{value} is not allowed: it must be above 0"
        else:
            sizes[name] = (field, value)

    heads, shared = sizes.get("num_attention_heads"), sizes.get("num_key_value_heads")
    width = sizes.get("hidden_size")
    if heads and shared and heads[1] % shared[1]:
        yield shared[0], f"{shared[1]} does not divide {heads[0]}, {heads[1]}: every key and value head serves as many"
    if heads and width and width[1] % heads[1] and "head_dim" not in architecture:
        yield width[0], f"{width[1]} is not a multiple of {heads[0]}, {heads[1]}"
