"""Tokenizer folders: their content is checked before any library reads it.

No torch is imported here: data is measured without it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# huggingface_hub reads it once, at its import. A folder must not make a library ask the network for a missing file.
os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.data.conversations.chat_format import is_own_vocabulary
from training.data.conversations.chat_template import MORE_TEMPLATES, TEMPLATE_FILE
from training.data.conversations.tokenizer_files import files_of
from training.data.tokens.byte_bpe import read_tokenizer
from training.errors import InputRefused
from training.specs.tokenizer import END_OF_TEXT, END_OF_TURN

_MAX_JSON_BYTES = 16 * 2**20  # the index of a model of 100,000 tensors has 10 MB
_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_FILES = (_TOKENIZER, _TOKENIZER_CONFIG, TEMPLATE_FILE, "README.md")
_SECOND_TEMPLATE = "training.jinja"
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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a folder, as transformers sees it: one that was trained here, or that an import wrote.

    Raises:
        InputRefused: There is none, or it is something else.
    """
    read_tokenizer(folder / _TOKENIZER)
    config = read_object(folder / _TOKENIZER_CONFIG)
    only_keys(folder / _TOKENIZER_CONFIG, config, _TOKENIZER_KEYS)
    if config.get("tokenizer_class") not in _TOKENIZER_CLASSES:
        raise InputRefused(f"{folder / _TOKENIZER_CONFIG}: tokenizer_class must be {_TOKENIZER_CLASSES[1]}")
    for other in ("special_tokens_map.json", "added_tokens.json"):
        if (folder / other).exists():
            raise InputRefused(f"{folder / other} is no part of a tokenizer; tokenizer.json holds all of it")
    only_second_template(folder)

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises errors of every kind
        raise InputRefused(f"{folder}: transformers cannot load this tokenizer: {brief(error)}") from error


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


def only_second_template(folder: Path) -> None:
    """Refuse templates beside the usual one, but for the one that Gatehouse writes."""
    more = folder / MORE_TEMPLATES
    if more.exists():
        for path in more.iterdir() if more.is_dir() else [more]:
            if path.name != _SECOND_TEMPLATE or not path.is_file():
                raise InputRefused(f"{path} is no part of a tokenizer: {MORE_TEMPLATES} holds {_SECOND_TEMPLATE} alone")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputRefused: It is missing, too large, or holds no object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise InputRefused(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MB")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path} is not JSON: {brief(error)}") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{path} holds no JSON object")
    return value


def only_keys(path: Path, value: dict[str, Any], keys: set[str]) -> None:
    """Refuse an object of a file with other keys than these.

    Raises:
        InputRefused: It has another one.
    """
    if unknown := sorted(set(value) - keys):
        raise InputRefused(
            f"{path}: {', '.join(unknown)[:100]} is refused; the keys here are {', '.join(sorted(keys))}"
        )


def brief(error: Exception) -> str:
    """The beginning of an error's message; a library may put a whole file into one."""
    return str(error).strip()[:300] or type(error).__name__
