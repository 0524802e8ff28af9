"""A tokenizer of somebody else's in one normalised form: `tokenizer.json` and what its special tokens are for.

Whatever a folder or a GGUF file spells it with, the import writes the same two files, and every id stays as it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from training.data.sources.origins import GENERATION, OriginFiles
from training.data.tokens.byte_bpe import rows_of
from training.data.tokens.tokenizer_kinds import MAX_BYTES, problem_of
from training.errors import InputRefused
from training.job.bounded_memory import bounded_memory

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_MAX_JSON = 16 * 2**20
_MEMORY = 3 * 2**30
_LONGEST_TEXT = 10**9  # transformers writes 10**30 for a tokenizer that names no length
# Tokens that models keep for padding, where their configuration names none.
_PADS = ("<|finetune_right_pad_id|>", "<|finetune_right_pad|>", "<pad>", "<|pad|>", "[PAD]", "<|padding|>")
_KNOWN_PRE = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "default", "")
# These cut numbers into digits before GPT-2's rule, which transformers' reader of GGUF files does not know.
_DIGITS_PRE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_CONVERT = (
    "load it where the library of its kind is installed, and save it again:\n"
    "  AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
)


@dataclass(frozen=True)
class ForeignTokenizer:
    """A tokenizer that was read.

    Attributes:
        tokenizer: Without truncation and padding.
        special: Role, such as `eos_token`, to token.
        template: The chat template; None where there is none.
        longest: Tokens of the longest text by its own configuration; None where it says nothing.
        added: Tokens of the recipe that were added, with their ids.
        notes: What was repaired or decided, in words.
        kind: Name of its model: BPE or Unigram.
    """

    tokenizer: Tokenizer
    special: dict[str, str]
    template: str | None
    longest: int | None
    added: dict[str, int]
    notes: tuple[str, ...]
    kind: str

    @property
    def rows(self) -> int:
        """Rows that an embedding needs for it."""
        return rows_of(self.tokenizer)

    def configuration(self) -> dict[str, Any]:
        """`tokenizer_config.json`."""
        others = [
            token.content
            for _, token in sorted(self.tokenizer.get_added_tokens_decoder().items())
            if token.special and token.content not in self.special.values()
        ]
        longest = {} if self.longest is None else {"model_max_length": self.longest}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": others,
            **self.special,
            **longest,
        }

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")
        text = json.dumps(self.configuration(), indent=1, sort_keys=True, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def read_foreign(files: OriginFiles, more_tokens: Sequence[str] = ()) -> ForeignTokenizer:
    """Read the tokenizer of an origin.

    Args:
        files: The origin's.
        more_tokens: Special tokens to add; one that is there already stays as it is.

    Raises:
        InputRefused: There is none, it needs code, or it is of a kind that is not read.
    """
    foreign = _of_gguf(files.gguf) if files.gguf else _of_folder(files)
    return _with_tokens(_with_roles(foreign), more_tokens)


def _of_folder(files: OriginFiles) -> ForeignTokenizer:
    paths = {path.name: path for path in files.tokenizer}
    config = _read(paths["tokenizer_config.json"]) if "tokenizer_config.json" in paths else {}
    notes = []
    if "auto_map" in config:
        notes.append("auto_map of tokenizer_config.json is left out: no code of a folder is run")

    if "tokenizer.json" in paths:
        tokenizer, kind = _parsed(paths["tokenizer.json"])
    elif "auto_map" in config:
        raise InputRefused(f"{files.folder}: its tokenizer needs code of its own, and holds no tokenizer.json")
    else:
        tokenizer, kind = _converted(files, config)
        notes.append(f"converted from {', '.join(name for name in paths if name in _SLOW)}")

    special, more = _special_tokens(paths, config)
    notes += _add_missing(tokenizer, special, config, more)
    longest = config.get("model_max_length")
    return ForeignTokenizer(
        tokenizer,
        special,
        _template(paths, config),
        longest if isinstance(longest, int) and 0 < longest < _LONGEST_TEXT else None,
        {},
        tuple([*notes, *_end_of_generation(files, tokenizer, special)]),
        kind,
    )


def _parsed(path: Path) -> tuple[Tokenizer, str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MB")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if problem := problem_of(content):
            raise ValueError(problem)
        with bounded_memory(_MEMORY):
            tokenizer = Tokenizer.from_str(text)
    except (Exception, RecursionError) as error:  # the library raises bare Exception for a malformed file
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)[:300]
        raise InputRefused(f"{path} cannot be imported: {reason}") from error
    return _plain(tokenizer), type(tokenizer.model).__name__


_SLOW = ("tokenizer.model", "vocab.json", "merges.txt")


def _converted(files: OriginFiles, config: dict[str, Any]) -> tuple[Tokenizer, str]:
    """The tokenizer of a folder without `tokenizer.json`, as transformers converts it, offline and without code."""
    slow = [path for path in files.tokenizer if path.name in _SLOW]
    if not slow:
        raise InputRefused(
            f"{files.folder} holds no tokenizer: there is no tokenizer.json; name another folder as tokenizer.from"
        )
    from transformers import AutoTokenizer

    kept = {name: value for name, value in config.items() if name not in ("auto_map", "name_or_path")}
    with tempfile.TemporaryDirectory() as staged:
        for path in (*slow, *(path for path in files.model if path.name == "config.json")):
            content = path.read_bytes()
            if path.name == "config.json":
                content = json.dumps({"model_type": _read(path).get("model_type")}).encode()
            (Path(staged) / path.name).write_bytes(content)
        (Path(staged) / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
        try:
            with bounded_memory(_MEMORY):
                loaded = AutoTokenizer.from_pretrained(staged, local_files_only=True, trust_remote_code=False)
            tokenizer = loaded.backend_tokenizer
        except Exception as error:  # the libraries that are missing raise errors of every kind
            names = ", ".join(path.name for path in slow)
            raise InputRefused(
                f"{files.folder} holds {names} and no tokenizer.json, and it cannot be converted here "
                f"({str(error).strip().splitlines()[0][:160]}); {_CONVERT}"
            ) from error
    if problem := problem_of(json.loads(tokenizer.to_str())):
        raise InputRefused(f"{files.folder}: its tokenizer cannot be imported: {problem}")
    return _plain(tokenizer), type(tokenizer.model).__name__


def _of_gguf(path: Path) -> ForeignTokenizer:
    from transformers import AutoTokenizer

    from training.data.tokens.gguf_files import gguf_metadata

    metadata = gguf_metadata(path)
    if "tokenizer.ggml.model" not in metadata:
        raise InputRefused(f"{path} holds no tokenizer; name a folder with one as tokenizer.from")
    rule = str(metadata.get("tokenizer.ggml.pre", ""))
    try:
        with bounded_memory(_MEMORY):
            loaded: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        tokenizer = loaded.backend_tokenizer
    except Exception as error:  # the library raises errors of every kind
        raise InputRefused(f"{path}: its tokenizer cannot be read: {str(error)[:300]}") from error

    notes = []
    if metadata["tokenizer.ggml.model"] == "gpt2":
        notes = _cut_words_as(path, tokenizer, rule)
    special = {role: token for role in ROLES if isinstance(token := getattr(loaded, role, None), str)}
    template = metadata.get("tokenizer.chat_template")
    return ForeignTokenizer(
        _plain(tokenizer), special, template or None, None, {}, tuple(notes), type(tokenizer.model).__name__
    )


def _cut_words_as(path: Path, tokenizer: Tokenizer, rule: str) -> list[str]:
    """Cut words by the rule that a GGUF file names, where transformers does not know it.

    Raises:
        InputRefused: Nobody here knows the rule: the ids would be others than those that the model was trained with.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if rule in _DIGITS_PRE:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return [f"numbers are cut into digits, as the file's rule {rule} does"]
    if rule in _KNOWN_PRE or rule in GGUF_PRE_TOKENIZER_SPLITS:
        return []
    raise InputRefused(
        f"{path}: its tokenizer cuts words by the rule {rule[:40]!r}, which is not known here, so its ids would be "
        "wrong; name a folder with the model's tokenizer.json as tokenizer.from"
    )


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(paths: dict[str, Path], config: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Role to token, and further special tokens, as the folder's configurations name them."""
    sources = [_read(paths["special_tokens_map.json"])] if "special_tokens_map.json" in paths else []
    special: dict[str, str] = {}
    more: list[str] = []
    for source in (*sources, config):  # the last one decides
        for role in ROLES:
            if token := _text(source.get(role)):
                special[role] = token
        for name in ("additional_special_tokens", "extra_special_tokens"):
            tokens = source.get(name) or ()
            values = tokens.values() if isinstance(tokens, dict) else tokens
            more += [token for value in values if (token := _text(value))]
    return special, more


def _text(value: Any) -> str | None:
    """The token in a configuration: a text, or an object that holds it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _add_missing(
    tokenizer: Tokenizer, special: dict[str, str], config: dict[str, Any], more: Sequence[str]
) -> list[str]:
    """Make the named special tokens special, and leave out those that the vocabulary does not hold.

    Returns:
        What was done, in words.
    """
    notes = []
    listed = config.get("added_tokens_decoder")
    ids = {_text(value): key for key, value in listed.items()} if isinstance(listed, dict) else {}
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for token in dict.fromkeys([*special.values(), *more]):
        if token in added and added[token].special:
            continue
        if tokenizer.token_to_id(token) is None and str(ids.get(token)) != str(rows_of(tokenizer)):
            for role in [role for role, name in special.items() if name == token]:
                del special[role]
            notes.append(f"the special token {token[:40]} is left out: the vocabulary does not hold it")
            continue
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return notes


def _end_of_generation(files: OriginFiles, tokenizer: Tokenizer, special: dict[str, str]) -> list[str]:
    """Where the tokenizer names no end of a text, the one of the model's configuration."""
    if "eos_token" in special:
        return []
    for path in sorted(files.model, key=lambda path: path.name != GENERATION):
        if path.suffix == ".json" and "index" not in path.name:
            ends = _read(path).get("eos_token_id")
            first = ends[0] if isinstance(ends, list) and ends else ends
            token = tokenizer.id_to_token(first) if isinstance(first, int) else None
            if token:
                special["eos_token"] = token
                return [f"the end of a text is {token}, by {path.name}"]
    return []


def _with_roles(foreign: ForeignTokenizer) -> ForeignTokenizer:
    """The tokenizer with an end of text and a padding token.

    Raises:
        InputRefused: Nothing names the end of a text.
    """
    special, notes = dict(foreign.special), list(foreign.notes)
    for role in [role for role, token in special.items() if foreign.tokenizer.token_to_id(token) is None]:
        del special[role]
    if "eos_token" not in special:
        raise InputRefused(
            "the tokenizer names no end of a text: write eos_token into its tokenizer_config.json, or eos_token_id "
            "into generation_config.json"
        )
    if "pad_token" not in special:
        known = [token for token in _PADS if foreign.tokenizer.token_to_id(token) is not None]
        special["pad_token"] = known[0] if known else special["eos_token"]
        notes.append(f"no padding token is named; {special['pad_token']} is taken")
    if special["pad_token"] == special["eos_token"]:
        notes.append("padding and the end of a text are one token: padding is told apart by its place")
    return replace(foreign, special=special, notes=tuple(notes))


def _with_tokens(foreign: ForeignTokenizer, tokens: Sequence[str]) -> ForeignTokenizer:
    added: dict[str, int] = {}
    notes = list(foreign.notes)
    for token in tokens:
        is_there = foreign.tokenizer.token_to_id(token) is not None
        foreign.tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        number = foreign.tokenizer.token_to_id(token)
        if is_there or number is None:
            notes.append(f"the special token {token} is there already")
        else:
            added[token] = number
    return replace(foreign, added=added, notes=tuple(notes))


def _template(paths: dict[str, Path], config: dict[str, Any]) -> str | None:
    if "chat_template.jinja" in paths:
        return _short_text(paths["chat_template.jinja"])
    written: Any = config.get("chat_template")
    if written is None and "chat_template.json" in paths:
        written = _read(paths["chat_template.json"]).get("chat_template")
    if isinstance(written, list):
        named = {part.get("name"): part.get("template") for part in written if isinstance(part, dict)}
        written = named.get("default")
    return written if isinstance(written, str) and written else None


def _short_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise InputRefused(f"{path} is larger than {_MAX_JSON >> 20} MB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(f"{path} cannot be read: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_short_text(path))
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{path} holds no JSON object")
    return value
