"""Text to tokens by the fastest engine that gives exactly what `tokenizers` gives.

gigatoken encodes byte-level BPE some fifty times as fast. It knows the rules by which the tokenizers in use cut words,
and refuses others. It is used where it loads the tokenizer and agrees with `tokenizers` on texts that are hard and on a
sample of each file; everywhere else `tokenizers` itself encodes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.data.text.word_codes import batches_of
from training.data.tokens.byte_bpe import encode_texts, end_of_text, load_plain

_SAMPLED, _EXCERPT = 16, 4_096  # documents of each call that both engines encode, and characters of a longer one
_EXACT_CHARACTERS = 2**20  # of the texts that tokenizers encodes at a time: it takes a hundred bytes for each token
_HARD_TEXTS = (
    "",
    " ",
    "\n\n  \t\t x\r\n\r\n\u00a0y\u2028z",
    "don't DON'T we'll 12345678 3.14e-10 \u0967\u0968\u0969",
    "e\u0301 \u00e9 \u4eca\u5929\u5f00\u4f1a \u0e01\u0e47 \u0915\u093f \ud55c\uad6d \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 \x00\x01\x7f \ufeff\ufffd",
    "def f(x):\n    return x**2  # !?\n\n\n",
)


class Encoded(NamedTuple):
    """Tokens of several texts.

    Attributes:
        tokens: One text after the other, int32 [sum of lengths].
        lengths: Tokens of each text, int64 [texts].
    """

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]


class Encoder:
    """Encodes texts with a tokenizer; the names of its special tokens are plain text.

    Args:
        path: Its tokenizer.json.

    Attributes:
        engine: `gigatoken` or `tokenizers`.
        why: Why it is not the fast one; empty if it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.plain = load_plain(path)
        self._fast, self.why = _fast_engine(path.read_text(encoding="utf-8"))
        if self._fast is not None:
            names = [token.content for token in self.plain.get_added_tokens_decoder().values()]
            texts = [*_HARD_TEXTS, " ".join(names), "".join(names), *(f"a{name}b" for name in names[:64])]
            if not _equal(self._encode_fast(texts), _encode_exactly(self.plain, texts)):
                self._fast, self.why = None, "it encodes some texts in another way"
        self.engine = "tokenizers" if self._fast is None else "gigatoken"

    @cached_property
    def end(self) -> int:
        """Id of the token that ends a document."""
        return end_of_text(self._path, self.plain)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The tokens of some texts, about 8 MB of them at most."""
        if self._fast is not None:
            encoded = self._encode_fast(texts)
            if self._agrees(texts, encoded):
                return encoded
            self._fast, self.engine, self.why = None, "tokenizers", "it encoded a document in another way"
        return _encode_exactly(self.plain, texts)

    def encode_exactly(self, texts: Sequence[str]) -> Encoded:
        """The same by `tokenizers`, for who checks the other engine."""
        return _encode_exactly(self.plain, texts)

    def _encode_fast(self, texts: Sequence[str]) -> Encoded:
        import awkward  # takes a third of a second, and not every tokenizer needs it

        rows = self._fast.encode_batch(list(texts), parallel=False)
        return Encoded(
            np.asarray(awkward.flatten(rows)).astype(np.int32), np.asarray(awkward.num(rows)).astype(np.int64)
        )

    def _agrees(self, texts: Sequence[str], encoded: Encoded) -> bool:
        """Whether both engines agree on a sample: on documents that are short, and on the beginnings of others."""
        sampled = range(0, len(texts), max(1, len(texts) // _SAMPLED))
        short = [place for place in sampled if len(texts[place]) <= _EXCERPT]
        beginnings = [texts[place][:_EXCERPT] for place in sampled if len(texts[place]) > _EXCERPT]
        ends = np.cumsum(encoded.lengths)
        tokens = [encoded.tokens[ends[place] - encoded.lengths[place] : ends[place]] for place in short]
        of_short = Encoded(np.concatenate([np.empty(0, np.int32), *tokens]), encoded.lengths[short])
        return _equal(of_short, _encode_exactly(self.plain, [texts[place] for place in short])) and _equal(
            self._encode_fast(beginnings), _encode_exactly(self.plain, beginnings)
        )


def _equal(left: Encoded, right: Encoded) -> bool:
    return np.array_equal(left.tokens, right.tokens) and np.array_equal(left.lengths, right.lengths)


@lru_cache(maxsize=2)
def encoder(path: Path) -> Encoder:
    """The encoder of a tokenizer.json; a process that works on many files makes it once."""
    return Encoder(path)


def _encode_exactly(plain: Tokenizer, texts: Sequence[str]) -> Encoded:
    tokens = [np.empty(0, np.int32)]
    for batch in batches_of(texts, str, _EXACT_CHARACTERS):
        tokens += encode_texts(plain, batch)
    return Encoded(np.concatenate(tokens), np.array([len(some) for some in tokens[1:]], np.int64))


def _fast_engine(content: str) -> tuple[Any, str]:
    """The engine for the content of a tokenizer.json, or None and why there is none."""
    try:
        from gigatoken import Tokenizer as FastTokenizer
    except ImportError:
        return None, "gigatoken is not installed"
    tokenizer = json.loads(content)
    # It would find the special tokens by their names, which are text in a text.
    tokenizer["added_tokens"] = [token for token in tokenizer.get("added_tokens") or [] if not token.get("special")]
    try:
        return FastTokenizer.from_json(json.dumps(tokenizer)), ""
    except Exception as error:  # it raises bare RuntimeError for what it does not know
        if "no fast pretokenizer" in str(error):
            return None, "it does not know this rule for cutting words; tokenizer.pre_tokenizer: gpt4o is one it knows"
        return None, str(error).split("\n")[0][:200]
