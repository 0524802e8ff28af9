"""The fast engine gives what `tokenizers` gives, or is not used."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.foreign import byte_level, save_tokenizer, sentencepiece_bpe
from tests.unit.data.tokens import parts
from training.data.tokens.byte_bpe import PATTERNS, encode_texts, load_plain, pre_tokenizer, train_bpe
from training.data.tokens.encoding import Encoded, Encoder
from training.errors import InputRefused

pytest.importorskip("gigatoken", reason="gigatoken has no wheel for this machine")
TEXTS = [parts.text_of(number) for number in range(40)] + ["price 12345 and 7, it's", "ก็ दिन déjà 今天 12"] * 4
FAST = [("gpt2", None), ("llama3", None), ("llama3", 1), ("gpt4o", None)]


@functools.cache
def tokenizer_file(rule: str, digits: int | str | None = None) -> Path:
    """A tokenizer of 400 tokens that cuts words by a rule."""
    path = Path(tempfile.mkdtemp()) / "tokenizer.json"
    train_bpe(TEXTS, 400, 2, pre_tokenizer(rule, digits)).save(str(path))
    return path


def split(encoded: Encoded) -> list[list[int]]:
    return [tokens.tolist() for tokens in np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])]


@pytest.mark.parametrize(("rule", "digits"), FAST)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(st.text(), st.sampled_from(TEXTS)), min_size=1, max_size=20))
def test_both_engines_give_the_same(rule: str, digits: int | None, texts: list[str]) -> None:
    encoder = Encoder(tokenizer_file(rule, digits))
    assert (encoder.engine, encoder.why) == ("gigatoken", "")
    exact = [tokens.tolist() for tokens in encode_texts(encoder.plain, texts)]
    assert split(encoder._encode_fast(texts)) == split(encoder.encode(texts)) == exact


@pytest.mark.parametrize(("rule", "digits"), [*FAST, ("words", None)])
def test_names_of_special_tokens_are_text(rule: str, digits: int | None) -> None:
    encoder = Encoder(tokenizer_file(rule, digits))
    text = "a<|endoftext|>b <|user|><|pad|> <|end|>"
    (tokens,) = split(encoder.encode([text]))
    assert min(tokens) > 5
    assert encoder.plain.decode(tokens, skip_special_tokens=False) == text


def test_a_rule_that_the_fast_engine_does_not_know_is_encoded_exactly() -> None:
    encoder = Encoder(tokenizer_file("words"))
    assert encoder.engine == "tokenizers"
    assert "tokenizer.pre_tokenizer: gpt4o is one it knows" in encoder.why
    assert split(encoder.encode(TEXTS)) == [tokens.tolist() for tokens in encode_texts(encoder.plain, TEXTS)]


def test_an_engine_that_differs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizer_file("gpt4o"))
    exact = split(encoder.encode(TEXTS))
    right = encoder._encode_fast

    def wrong(texts: list[str]) -> Encoded:
        tokens, lengths = right(texts)
        return Encoded(np.where(np.arange(len(tokens)) < lengths[0], tokens + 1, tokens), lengths)

    monkeypatch.setattr(encoder, "_encode_fast", wrong)
    assert split(encoder.encode(TEXTS)) == exact
    assert (encoder.engine, encoder.why) == ("tokenizers", "it encoded a document in another way")


@pytest.mark.parametrize("rule", PATTERNS)
@pytest.mark.parametrize(
    ("digits", "numbers"), [(1, ["1", "2", "3", "4", "5"]), (3, ["123", "45"]), ("free", ["12345"])]
)
def test_numbers_are_cut_as_the_recipe_says(rule: str, digits: int | str, numbers: list[str]) -> None:
    cut = [piece for piece, _ in pre_tokenizer(rule, digits).pre_tokenize_str("price 12345x")]
    assert [piece.lstrip("Ġ") for piece in cut if any(map(str.isdigit, piece))] == numbers


def test_a_rule_is_read_again_from_its_file() -> None:
    for rule, digits in [*FAST, ("words", 1), ("gpt2", 3)]:
        path = tokenizer_file(rule, digits)
        assert json.loads(path.read_text())["pre_tokenizer"] == json.loads(load_plain(path).to_str())["pre_tokenizer"]


def test_every_tokenizer_has_its_own_end_of_a_document(tmp_path: Path) -> None:
    def end(name: str, tokenizer: Tokenizer, **config: str) -> int | None:
        return Encoder(save_tokenizer(tokenizer, tmp_path / name, **config) / "tokenizer.json").end

    assert end("turns", byte_level(("<|im_end|>", "<|endoftext|>")), eos_token="<|im_end|>") == 1
    assert end("llama", sentencepiece_bpe(), eos_token="</s>") == 2
    assert end("own", byte_level(("<start>", "<stop>")), eos_token="<stop>") == 1
    plain = byte_level(("<stop>",))
    plain.add_tokens(["</s>"])  # a tag of HTML, and no special token
    assert end("tag", plain, eos_token="<stop>") == 0
    with pytest.raises(InputRefused, match="none/tokenizer_config.json names no end of a text"):
        end("none", byte_level(("<stop>",)))
