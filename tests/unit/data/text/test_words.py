"""Words of every script."""

from __future__ import annotations

import unicodedata

import pytest

from training.data.text.similarity import normalised_words
from training.data.text.words import extent, word_weight, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The shop's OPEN: os_path.join2!", ["the", "shop", "s", "open", "os", "path", "join2"]),
        ("खर्च करना", ["खर्च", "करना"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("مُحَمَّدٌ كِتَابٌ؟", ["مُحَمَّدٌ", "كِتَابٌ"]),
        ("한국어 문장입니다.", ["한국어", "문장입니다"]),
        ("今天用Python3。", ["今", "天", "用", "python3"]),
        ("コーヒーです", ["コ", "ー", "ヒ", "ー", "で", "す"]),
        ("ไทยที่", ["ไ", "ท", "ย", "ที่"]),
        ("ໂຕ ខ្ញុំ မြန်", ["ໂ", "ຕ", "ខ្", "ញុំ", "မြ", "န်"]),
        ("… — ?! 🙂", []),
        ("", []),
    ],
)
def test_words_keep_their_marks_and_scripts_without_spaces_have_characters(text: str, words: list[str]) -> None:
    assert words_of(text) == words
    assert normalised_words(text) == words


@pytest.mark.parametrize("text", ["Été déjà là", "مُحَمَّدٌ", "한국어", "が ガ", "Å ﬁn"])
def test_a_word_is_the_same_in_composed_and_decomposed_form(text: str) -> None:
    forms = {tuple(words_of(unicodedata.normalize(form, text))) for form in ("NFC", "NFD")}
    assert len(forms) == 1


def test_two_characters_without_spaces_weigh_one_word_and_a_wide_one_is_three_letters_long() -> None:
    assert word_weight(words_of("今天 is today")) == 3.0
    assert (extent("今天"), extent("ไทย"), extent("day")) == (6, 3, 3)
