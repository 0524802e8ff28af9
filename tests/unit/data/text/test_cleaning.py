"""Cleaning of single documents: form, pieces, domains, and reasons to drop."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from training.data.tables import text_id
from training.data.text.cleaning import Piece
from training.data.text.cleaning import clean as clean_document
from training.specs.corpus import CorpusSection

WORDS = [f"word{number}" for number in range(2_000)]


def prose(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def clean(texts: Sequence[str], paths: Sequence[str] = (), **limits: Any) -> list[Piece]:
    """Pieces of texts, by path."""
    names = paths or [f"{number}.txt" for number in range(len(texts))]
    section = CorpusSection(**limits)
    pieces = [
        piece
        for path, text in zip(names, texts, strict=True)
        for piece in clean_document("s", path, text, section).pieces
    ]
    return sorted(pieces, key=lambda piece: piece.path)


def test_reasons_to_drop() -> None:
    pieces = clean(["short", "1234567890 " * 30, "x" * 300, prose(1), "", "é1234567890 " * 30], max_line=2_000)
    reasons = ["too short", "few letters", None, None, "too short", "few letters"]
    assert [piece.reason for piece in pieces] == reasons
    pieces = clean(["x" * 300, "line\n" * 100], max_line=200)
    assert [piece.reason for piece in pieces] == ["long line", None]


def test_an_empty_text_is_too_short_whatever_the_limit() -> None:
    assert clean(["", "a"], min_characters=0)[0].reason == "too short"


def test_texts_get_one_form_and_the_id_follows() -> None:
    forms = ["\ufeffdéjà\r\nvu\rété\n" * 30, "de\u0301ja\u0300\nvu\n\ufeffe\u0301te\u0301\n" * 30]
    pieces = clean(forms)
    text = "déjà\nvu\nété\n" * 30
    assert {(piece.text, piece.id, piece.document) for piece in pieces} == {(text, text_id(text), text_id(text))}


LONG = {
    "english": "The house stood at the end of a long road, and nobody had lived there for many years. " * 30,
    "lower case, no sentence end": "and then we went home and told our mother that everything is fine with us " * 30,
    "chinese": "今天开会讨论了新的计划，大家都觉得这个办法很好，明天开始执行。" * 80,
    "thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน หรือวรรณยุกต์เช่นเดียวกับภาษาจีน " * 30,
    "hindi": "राम घर गया और उसने अपनी माँ से कहा कि आज वह बहुत खुश है। " * 40,
    "a long address": "See the page " + "https://example.org/" + "x" * 300 + " for what the words mean. " * 90,
}
GENERATED = {
    "base64": base64.b64encode(random.Random(0).randbytes(1_800)).decode(),
    "base64 in a paragraph": "A picture of it: "
    + base64.b64encode(random.Random(1).randbytes(1_800)).decode()
    + (" and then some words about the picture that follow it" * 20),
    "minified": "!function(e,t){var n=e.document;return t.a=function(r){return n.b(r)||{}},t.c=[1,2,3]}(this,{});" * 30,
    "style": ".a{color:red;margin:0 auto}.b>li{padding:4px 2px;border:1px solid #ccc}" * 40,
    "rows": json.dumps([{"id": number, "name": f"row {number}", "ok": True} for number in range(100)]),
    "numbers": " ".join(str(number * 7.1) for number in range(400)),
    "hexadecimal": random.Random(2).randbytes(1_200).hex(" "),
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_paragraph_in_one_line_is_kept_but_not_as_code(text: str) -> None:
    assert len(text) > 2_000
    pieces = clean([text, text], ("a.txt", "b.py"), min_letters=0.0)
    assert [piece.reason for piece in pieces] == [None, "long line"]


@pytest.mark.parametrize("text", GENERATED.values(), ids=GENERATED)
def test_generated_data_in_one_line_goes(text: str) -> None:
    assert len(text) > 2_000
    assert clean([text], min_letters=0.0)[0].reason == "long line"


def test_long_documents_become_parts_of_their_domain() -> None:
    pieces = clean(
        ["line of text\n" * 100, prose(2)],
        ("net/a.txt#7", "b.txt"),
        max_characters=500,
        domains={"network": ("s/net/*",)},
    )
    parts = [piece for piece in pieces if piece.path.startswith("net/")]
    assert [piece.path for piece in parts] == ["net/a.txt#7#part1", "net/a.txt#7#part2", "net/a.txt#7#part3"]
    assert {piece.domain for piece in parts} == {"network"}
    assert {piece.domain for piece in pieces if piece.path.startswith("b.txt")} == {"general"}


def test_letters_are_those_of_every_script() -> None:
    assert clean(["今天开会讨论了新的计划" * 30, "๑๒๓๔๕ " * 60, "राम घर गया " * 30], min_letters=0.5)[0].reason is None
    assert clean(["๑๒๓๔๕ " * 60], min_letters=0.01)[0].reason == "few letters"


def test_the_parts_of_a_document_are_known_by_its_whole_text() -> None:
    text = prose(1, 400)
    pieces = clean([text], ("story.txt",), max_characters=700)
    assert len(pieces) > 3
    assert {piece.document for piece in pieces} == {text_id(text)}
    assert {piece.document for piece in clean([text], ("other.txt",), max_characters=900)} == {text_id(text)}
