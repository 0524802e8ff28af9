"""Sentences of every script, and what is made of them."""

from __future__ import annotations

import pytest

from training.data.conversations.continuations import continuation_items, unused_paragraphs
from training.data.conversations.docstrings import clean_docstring
from training.data.text.sentences import ends_sentence, has_capitals, paragraphs, sentences

CHINESE = "今天第{}次开会讨论了新的计划，大家都觉得这个办法很好，明天开始执行。"
HINDI = "राम{} घर गया और उसने अपनी माँ से कहा कि आज वह बहुत खुश है क्योंकि उसे नई किताब मिली है। "
ARABIC = "هل ذهب الولد الصغير رقم {} إلى المدرسة اليوم مع أخيه الكبير وعاد إلى البيت في المساء؟ "
URDU = "لڑکا نمبر {} آج صبح سویرے اپنے بھائی کے ساتھ اسکول گیا اور شام کو اپنے گھر واپس آیا۔ "
LOWER = "and then we went home number {} and told our mother that everything is fine with us today. "
RUSSIAN = "Мальчик номер {} пошёл сегодня рано утром в школу вместе со своим старшим братом и т. е. вернулся. "
JAPANESE = "今日は{}番目の会議で新しい計画について話し合いました。みんなはこの方法がとても良いと思いました！"
THAI = "วันนี้ครั้งที่ {} อากาศดีมาก เราไปเดินเล่นที่สวนสาธารณะด้วยกัน แล้วกลับมากินข้าวที่บ้านตอนเย็น "
BURMESE = "ယနေ့ {} ကြိမ်မြောက် ရာသီဥတု အလွန်ကောင်းမွန်ပါသည်။ ကျွန်ုပ်တို့သည် ပန်းခြံသို့ လမ်းလျှောက် သွားကြပါသည်။ "


@pytest.mark.parametrize("sentence", [CHINESE, HINDI, ARABIC, URDU, LOWER, RUSSIAN, JAPANESE, THAI, BURMESE])
def test_every_script_gives_continuations(sentence: str) -> None:
    text = "\n\n".join("".join(sentence.format(10 * page + place) for place in range(8)) for page in range(10))
    items = continuation_items(text, 400)
    assert len(items) >= 20
    assert all(f"{item.passage}{item.answer}" in text or f"{item.passage} {item.answer}" in text for item in items)
    assert not unused_paragraphs(text, 400)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("He left. She (an aunt) said: “No!” He did.", ["He left. ", "She (an aunt) said: “No!” ", "He did."]),
        ("See e.g. this and foo.bar?baz. 3 remain.", ["See e.g. this and foo.bar?baz. 3 remain."]),
        ("他说：“好。”然后走了！真的？", ["他说：“好。”", "然后走了！", "真的？"]),
        ("हाँ। नहीं॥ शायद", ["हाँ। ", "नहीं॥ ", "शायद"]),
        ("نعم؟ لا۔ ربما", ["نعم؟ ", "لا۔ ", "ربما"]),
        ("ก่อนหน้านี้ เราเคยไป 3 ครั้ง", ["ก่อนหน้านี้ ", "เราเคยไป ", "3 ", "ครั้ง"]),
        ("Élan vital. Écoute… Oui.", ["Élan vital. ", "Écoute… ", "Oui."]),
        ("", []),
    ],
)
def test_ends_of_sentences(line: str, parts: list[str]) -> None:
    assert sentences(line) == parts
    assert "".join(parts) == line


def test_small_letters_begin_sentences_only_where_there_are_no_capitals() -> None:
    text = "i went home. then i slept."
    assert not has_capitals(text)
    assert sentences(text, has_capitals(text)) == ["i went home. ", "then i slept."]
    assert has_capitals("Look at e.g. this.")


def test_wrapped_lines_of_chinese_are_joined_without_a_space() -> None:
    assert paragraphs("今天天气\n很好。\n我们去\n\nwrapped\nlines") == ["今天天气很好。我们去", "wrapped lines"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Done.", True), ("“Done!”", True), ("好。", True), ("है।", True), ("Done", False), ("Done:", False), ("", False)],
)
def test_what_ends_a_sentence(text: str, expected: bool) -> None:
    assert ends_sentence(text) is expected


@pytest.mark.parametrize(
    ("docstring", "answer"),
    [
        ("返回文本中所有单词的列表。\n\n更多。", "返回文本中所有单词的列表。"),
        ("पाठ के सभी शब्दों की सूची लौटाता है", "पाठ के सभी शब्दों की सूची लौटाता है."),
    ],
)
def test_docstrings_of_other_scripts(docstring: str, answer: str) -> None:
    assert clean_docstring(docstring, 60) == answer


def test_it_says_why_paragraphs_give_nothing() -> None:
    long = "one two three four " * 20
    text = f"Too short.\n\n{long}\n\nThe first sentence ends here. {long.capitalize()}"
    assert dict(unused_paragraphs(text, 100)) == {
        "shorter than 100 characters": 1,
        "without the end of a sentence inside (. ! ? … 。 । ؟ ۔)": 1,
        "without 80 characters and 13 words before a sentence of 20 to 100 characters": 1,
    }
