"""Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019) on the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.errors import InputRefused, RecipeError
from training.specs.tokenizer import SPECIAL_TOKENS

TOKENIZER_FILE = "tokenizer/tokenizer.json"


def train_bpe(texts: Iterable[str], vocabulary: int, min_frequency: int) -> Tokenizer:
    """Train a tokenizer of exactly `vocabulary` tokens: the special tokens, the 256 bytes, then merges.

    The same texts in the same order give the same tokenizer.

    Raises:
        RecipeError: The texts do not hold enough pairs that occur `min_frequency` times.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Adds nothing, but transformers writes it when it saves a tokenizer: with it, saving changes no byte of the file.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=min_frequency, special_tokens=special,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocabulary:
        raise RecipeError(f"tokenizer.vocabulary: the corpus is too small for {vocabulary} tokens; with min_frequency "
                          f"{min_frequency} it gives {found}. Set tokenizer.vocabulary to {found} or less, or add "
                          "text")
    return tokenizer


def load_plain(path: Path) -> Tokenizer:
    """A tokenizer that takes special tokens' names in a text for what they are there: plain text.

    Raises:
        InputRefused: The file is missing or is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise InputRefused(f"{path} is not a tokenizer ({error}); materialize tokenizer again") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> Iterator[npt.NDArray[np.int32]]:
    """Token ids of every text, int32 [length] each, on all cores."""
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        yield np.array(encoding.ids, np.int32)


def token_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """UTF-8 bytes that each token stands for, int64 [vocabulary]; a special token counts its name."""
    special = set(SPECIAL_TOKENS)
    names = (tokenizer.id_to_token(index) or "" for index in range(tokenizer.get_vocab_size()))
    return np.array([len(name.encode()) if name in special else len(name) for name in names], np.int64)


def frequencies(encoded: Iterable[npt.NDArray[np.int32]], vocabulary: int) -> npt.NDArray[np.int64]:
    """How often each token occurs, int64 [vocabulary]."""
    total = np.zeros(vocabulary, np.int64)
    for tokens in encoded:
        total += np.bincount(tokens, minlength=vocabulary)
    return total
