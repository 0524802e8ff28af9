"""Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019) on the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.data.tokens.tokenizer_kinds import MAX_BYTES, problem_of
from training.errors import InputRefused, RecipeError
from training.specs.tokenizer import END_OF_TEXT, SPECIAL_TOKENS

TOKENIZER_FILE = "tokenizer/tokenizer.json"
# Names of a token that ends a text and no turn of a conversation; its own end may be that of a turn.
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
# SentencePiece's spelling of a byte that no token holds, and of a space.
_BYTE, _SPACE = re.compile("<0x[0-9A-F]{2}>"), "\u2581"
_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    # GPT-2's, but marks belong to the letters before them: without that, words of Hindi, Tamil, Thai or pointed Arabic
    # fall apart at every vowel sign, and no merge can put them together again.
    "words": r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENGLISH}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENGLISH}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_DIGITS = re.compile(r"(?: \?)?\\p\{N\}(?:\+|\{1,3\})")


def train_bpe(
    texts: Iterable[str], vocabulary: int, min_frequency: int, cut: pre_tokenizers.PreTokenizer | None = None
) -> Tokenizer:
    """Train a tokenizer of exactly `vocabulary` tokens: the special tokens, the 256 bytes, then merges.

    The same texts in the same order give the same tokenizer.

    Args:
        texts: What merges are counted in.
        vocabulary: Number of tokens.
        min_frequency: How often a pair must occur to be merged.
        cut: From `pre_tokenizer`; by default its rule `words`.

    Raises:
        RecipeError: The texts do not hold enough pairs that occur `min_frequency` times.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut or pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    # Adds nothing, but transformers writes it when it saves a tokenizer: with it, saving changes no byte of the file.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])

    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)

    size = tokenizer.get_vocab_size()
    if size != vocabulary:
        raise RecipeError(
            f"tokenizer.vocabulary: {vocabulary} tokens were asked for, and the text that was read gives {size}: no "
            f"other pair occurs {min_frequency} times in a word. Set tokenizer.vocabulary to {size} or less, or add "
            "text"
        )
    return tokenizer


def pre_tokenizer(rule: str = "words", digits: int | str | None = None) -> pre_tokenizers.PreTokenizer:
    """Cuts a text into words, numbers, symbols and white space; no token crosses a cut.

    Args:
        rule: One of `PATTERNS`.
        digits: The most digits in a token: 1, 3, or `free`; None is as the rule has it.
    """
    if rule == "gpt2" and digits in (None, "free"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)  # it has the rule built in, and others know it so
    pattern = PATTERNS[rule]
    if digits is not None:
        numbers = {1: r"\p{N}", 3: r"\p{N}{1,3}", "free": r" ?\p{N}+"}[digits]
        pattern = _DIGITS.sub(lambda _: numbers, pattern)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer of the kind that `train_bpe` makes, or of one that is imported.

    Others are refused: their regular expressions and tables can take any time and any memory on the wrong text.

    Raises:
        InputRefused: The file is missing, too large, malformed, or another kind of tokenizer.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MB")
        text = path.read_text(encoding="utf-8")
        problem = problem_of(json.loads(text))
        if problem:
            raise ValueError(problem)
        return Tokenizer.from_str(text)
    except (Exception, RecursionError) as error:  # the library raises bare Exception for a malformed file
        raise InputRefused(
            f"{path} is not a tokenizer of Gatehouse ({str(error)[:300]}); materialize tokenizer again"
        ) from error


def load_plain(path: Path) -> Tokenizer:
    """Read a tokenizer that takes the names of special tokens in a text as plain text.

    Raises:
        InputRefused: The file is missing or is no tokenizer.
    """
    tokenizer = read_tokenizer(path)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of_text(path: Path, tokenizer: Tokenizer) -> int:
    """Id of the token that ends a document.

    Args:
        path: Its tokenizer.json, with tokenizer_config.json beside it.
        tokenizer: What was read of it.

    Raises:
        InputRefused: It has none.
    """
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for name in ENDS_OF_TEXT:
        if name in special:
            return special[name]
    config = path.with_name("tokenizer_config.json")
    try:
        name = json.loads(config.read_bytes())["eos_token"]
        return special[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputRefused(f"{config} names no end of a text; materialize tokenizer again") from error


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> Iterator[npt.NDArray[np.int32]]:
    """Token ids of every text, int32 [length] each, on all cores."""
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        yield np.array(encoding.ids, np.int32)


def token_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """UTF-8 bytes that each token stands for, int64 [vocabulary]; an added token counts its name."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    # A byte-level token spells each byte as one character, so its characters are its bytes.
    is_byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    names = (tokenizer.id_to_token(index) or "" for index in range(rows_of(tokenizer)))
    return np.array([_bytes_of(name, is_byte_level and name not in added) for name in names], np.int64)


def _bytes_of(name: str, is_byte_level: bool) -> int:
    if is_byte_level:
        return len(name)
    return 1 if _BYTE.fullmatch(name) else len(name.replace(_SPACE, " ").encode())


def rows_of(tokenizer: Tokenizer) -> int:
    """Rows that an embedding needs: the largest id and one. Ids may have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def frequencies(encoded: Iterable[npt.NDArray[np.int32]], vocabulary: int) -> npt.NDArray[np.int64]:
    """How often each token occurs, int64 [vocabulary]."""
    total = np.zeros(vocabulary, np.int64)
    for tokens in encoded:
        total += np.bincount(tokens, minlength=vocabulary)
    return total
