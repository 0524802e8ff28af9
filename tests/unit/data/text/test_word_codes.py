"""Words as numbers: equal for equal words, in every script, and as many as the words."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.text.word_codes import text_code, word_codes
from training.data.text.words import words_of

_PIECES = st.sampled_from(
    [
        "a",
        "Straße",
        "İstanbul",
        "é",
        "́",
        "今天",
        "开",
        "ก่",
        "ก",
        "็",
        "่",
        "कि",
        "ि",
        "ヅ",
        "K",
        "x9",
        "٣",
        "-",
        "_",
        "…",
        "、",
        "\x00",
        "😀",
        "\u200d",
        "ﬁ",
        "Ａ",
        "ᬅ᭄",
        "㋐",
        "မြန်",
        "한국",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(_PIECES, max_size=12).map("".join))


@settings(max_examples=500, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_the_words_are_those_of_the_rule(texts: list[str]) -> None:
    codes, starts = word_codes(texts)
    words = [words_of(text) for text in texts]
    assert np.diff(starts).tolist() == list(map(len, words))
    by_word: dict[str, int] = {}
    for word, code in zip((word for some in words for word in some), codes.tolist(), strict=True):
        assert by_word.setdefault(word, code) == code
    assert len(set(by_word.values())) == len(by_word)


def test_a_word_has_one_number_wherever_it_stands() -> None:
    long = "word " * 1_000_000 + "größer"
    codes, starts = word_codes(["größer", "GRÖSSER größer word", long])
    assert starts.tolist() == [0, 1, 4, 1_000_005]
    assert codes[0] == codes[2] == codes[-1]
    assert codes[3] == codes[4]


def test_texts_without_a_word_have_numbers_too() -> None:
    symbols = ["", "!", "!!", "…", "。", "\U0001f600", "\U0001f601"]
    assert len({text_code(symbol) for symbol in symbols}) == len(symbols)
