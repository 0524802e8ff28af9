"""Loading a model artifact for evaluation, and turning prompts and answers into its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.data.conversations.chat_format import ChatFormat
from training.errors import GatehouseError, InputRefused
from training.job.context import InputArtifact
from training.model_folder import load_model
from training.specs.execution import Execution
from training.store.store import file_entry
from training.tokenizer_folder import (
    has_template,
    is_own_tokenizer,
    load_tokenizer,
    start_of_text,
    tokenizer_ends,
    used_rows,
)


class LoadFailed(GatehouseError):
    """transformers cannot load a model folder, or it is not the model that its manifest names."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in float32, ready to be measured.

    Attributes:
        asset: The artifact's asset name.
        model: In evaluation mode.
        tokenizer: From the model's own folder.
        stops: Ids of the tokens that end a generated text.
        imported: The weights came in from elsewhere, and may have been trained further here.
    """

    asset: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    imported: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def is_chat(self) -> bool:
        """Whether the model was trained on conversations.

        All are but the base model, which reads plain text. A base model that was imported with a chat template of its
        own is one of them.
        """
        if self.asset != "base_model":
            return True
        return self.imported and self.has_chat_format and not is_own_tokenizer(self.tokenizer)

    @property
    def has_chat_format(self) -> bool:
        """Whether conversations can become token ids: a base model may be imported without a chat template."""
        return has_template(self.tokenizer)

    @property
    def vocabulary(self) -> int:
        """Number of the tokenizer's tokens: what a uniform guess would choose from."""
        return len(self.tokenizer)

    @cached_property
    def used_rows(self) -> int:
        """Number of the first logits that stand for tokens; an embedding may have more rows."""
        return used_rows(self.tokenizer)

    @property
    def start(self) -> int:
        """Id of the token before every document."""
        if self.has_chat_format:
            return self.chat_format.before_document
        start = start_of_text(self.tokenizer)
        return self.stops[0] if start is None else start

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How conversations become token ids."""
        return ChatFormat.of(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, as training encodes documents: the names of special tokens in it are text too."""
        return list(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    def encode_rendered(self, conversation: str) -> list[int]:
        """Token ids of a conversation that the chat template has rendered: there the special tokens are meant."""
        return list(self.tokenizer(conversation, add_special_tokens=False, verbose=False)["input_ids"])

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The first character of every token that `encode` gives, and the one after its last."""
        return list(
            self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
            )["offset_mapping"]
        )

    def prompt(self, text: str, chat: bool) -> list[int]:
        """Token ids of a question: a user's turn and the opening of the assistant's, or `Q: ...` and `A:`."""
        if chat:
            messages = [{"role": "user", "content": text}]
            return [int(token) for token in self.chat_format.prompt(messages)]
        return [self.start, *self.encode(f"Q: {text}\nA:")]

    def answered(self, question: str, answer: str, chat: bool) -> tuple[list[int], list[int]]:
        """Token ids of a question, as in `prompt`, and of an answer to it.

        In a chat the answer ends with the end of the turn, as it does in training.
        """
        if chat:
            given, scored = self.chat_format.answered([{"role": "user", "content": question}], answer)
            return given.tolist(), scored.tolist()
        return self.prompt(question, chat), self.encode(f" {answer.strip()}")

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def prepare(execution: Execution) -> torch.device:
    """Set this process's number of threads, and return the device that models are measured on."""
    if execution.threads:
        torch.set_num_threads(execution.threads)
    on_gpu = execution.device == "cuda" or (execution.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


def load(artifact: InputArtifact, device: torch.device) -> LoadedModel:
    """Load `model/` of an artifact with nothing but safetensors and transformers' own classes.

    Raises:
        LoadFailed: The folder does not load, weights are missing or left over, or its tokenizer is not the one that the
            manifest names.
    """
    folder, asset = artifact.folder / "model", artifact.manifest.asset
    _check_tokenizer(folder, artifact.manifest.facts.get("tokenizer"))
    try:
        model, tokenizer = load_model(folder), load_tokenizer(folder)
    except InputRefused as error:
        raise LoadFailed(str(error)) from error

    chat_stops: tuple[int, ...] = ()
    if has_template(tokenizer) or asset != "base_model":
        try:
            chat_stops = ChatFormat.of(tokenizer).stops
        except InputRefused as error:
            raise LoadFailed(f"{folder}: {error}") from error
    stops = tuple(dict.fromkeys([*_stops(tokenizer, model), *chat_stops]))
    if tokenizer.pad_token_id is None or not stops or max(stops) >= model.config.vocab_size:
        raise LoadFailed(f"{folder}: its tokenizer names no padding, or no end of a text that the model has")
    words = [token for token, number in tokenizer.get_vocab().items() if number >= model.config.vocab_size]
    if lacking := sorted(set(words) - set(tokenizer.all_special_tokens) - set(_added_special(tokenizer))):
        raise LoadFailed(f"{folder}: the model has no row for {len(lacking)} tokens, such as {lacking[0]!r}")
    return LoadedModel(asset, model.to(device), tokenizer, stops, imported="origin" in artifact.manifest.facts)


def _stops(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end a text: for an imported model those of its generation settings too."""
    own = tokenizer_ends(tokenizer)
    if is_own_tokenizer(tokenizer):
        return own[::-1]
    named = getattr(model.generation_config, "eos_token_id", None)
    more = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys([*own, *(int(end) for end in more if end is not None)]))


def _added_special(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _check_tokenizer(folder: Path, expected_digest: str | None) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise LoadFailed(f"{path} does not exist")
    if expected_digest is None:
        raise LoadFailed(f"{folder.parent}/manifest.json names no tokenizer in its facts")

    digest = file_entry(path).sha256
    if digest != expected_digest:
        raise LoadFailed(f"{path} has the digest {digest[:12]}, the manifest says {expected_digest[:12]}")
