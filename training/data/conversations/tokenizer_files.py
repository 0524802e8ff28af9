"""Reads what a chat format needs of a tokenizer's folder: the tokenizer, its special tokens, the template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.conversations.chat_template import TEMPLATE_FILE
from training.errors import InputRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VARIABLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer's content.

    Attributes:
        content: Of tokenizer.json.
        variables: `bos_token` and its like with their texts, as templates read them.
        template: The folder's chat template; None where it has none.
        ends: Further ids that end a text, of generation_config.json.
        has_start: The tokenizer puts `bos_token` before a text.
    """

    content: dict[str, Any]
    variables: dict[str, str]
    template: str | None
    ends: tuple[int, ...]
    has_start: bool


def read_files(folder: Path) -> TokenizerFiles:
    """Read a folder.

    Raises:
        InputRefused: A file is missing or malformed.
    """
    content, config = _read(folder / "tokenizer.json"), _read(folder / "tokenizer_config.json")
    generation = folder / "generation_config.json"
    ends = _read(generation).get("eos_token_id") if generation.is_file() else None
    path = folder / TEMPLATE_FILE
    template = path.read_text(encoding="utf-8") if path.is_file() else _template_of(config.get("chat_template"))
    return _files(content, config, template, ends)


def files_of(tokenizer: PreTrainedTokenizerBase) -> TokenizerFiles:
    """The same of a loaded fast tokenizer."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    own = tokenizer.chat_template
    template = own.get("default") if isinstance(own, dict) else own
    return _files(content, dict(tokenizer.special_tokens_map), template, None)


def _files(content: dict[str, Any], config: Mapping[str, Any], template: str | None, ends: Any) -> TokenizerFiles:
    variables = {}
    for name in _VARIABLES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            variables[name] = text

    ids = [ends] if isinstance(ends, int) else ends if isinstance(ends, list) else []
    start = variables.get("bos_token")
    has_start = start is not None and _first_of(content.get("post_processor")) == start
    return TokenizerFiles(content, variables, template, tuple(map(int, ids)), has_start)


def _first_of(processor: Any) -> str | None:
    """The token that a post-processor puts before a text; None where it puts none."""
    if not isinstance(processor, Mapping):
        return None
    for part in processor.get("processors", ()):
        if first := _first_of(part):
            return first
    if processor.get("type") in ("RobertaProcessing", "BertProcessing"):
        return str(processor["cls"][0])
    single = processor.get("single") or [{}]
    return single[0]["SpecialToken"]["id"] if "SpecialToken" in single[0] else None


def _template_of(value: Any) -> str | None:
    """The template of a tokenizer_config.json, which may list several by name."""
    if isinstance(value, list):
        named = {str(item.get("name")): item.get("template") for item in value if isinstance(item, Mapping)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{path} holds no JSON object")
    return value
