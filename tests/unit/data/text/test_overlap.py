"""The overlap of documents with items of the evaluation sets."""

from __future__ import annotations

import random

import pytest

from training.data.text.overlap import EvaluationItem, OverlapIndex

WORDS = [f"word{number}" for number in range(2_000)]


def prose(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def overlaps(items: dict[str, str], text: str, share: float = 0.5) -> dict[str, float]:
    index = OverlapIndex([EvaluationItem(*item) for item in items.items()], 13, share)
    return {overlap.item: overlap.share for overlap in index.overlaps("d", text)}


def test_overlap_counts_the_items_grams() -> None:
    item = prose(1, 40)
    words = item.split()
    half = " ".join(words[:26])  # 14 of the 28 13-grams
    assert overlaps({"a": item, "b": prose(2, 40)}, f"before {item.upper()}, after") == {"a": 1.0}
    assert overlaps({"a": item}, f"before {half} after") == {"a": 0.5}
    assert overlaps({"a": item}, f"before {half} after", share=0.51) == {}
    assert overlaps({"a": item}, " ".join(reversed(words))) == {}


def test_short_items_are_looked_for_whole() -> None:
    short = "return the name of this thing"
    assert overlaps({"a": short}, "They return the name of this-thing.") == {"a": 1.0}
    assert overlaps({"a": short}, "return the name of this other thing") == {}
    assert overlaps({"a": "return the name of it"}, "return the name of it") == {}  # five words say nothing


def test_overlaps_do_not_depend_on_other_items() -> None:
    item, text = prose(1, 30), prose(1, 30) + " " + prose(7, 500)
    alone = overlaps({"a": item}, text)
    assert overlaps({"a": item, **{str(seed): prose(seed, 50) for seed in range(20, 60)}}, text) == alone == {"a": 1.0}


@pytest.mark.parametrize("text", ["", "word", "...", "unknown " * 50])
def test_texts_without_known_words(text: str) -> None:
    assert overlaps({"a": prose(1, 30)}, text) == {}
    assert overlaps({}, text) == {}


def test_documents_together_hold_what_each_holds_alone() -> None:
    texts = [prose(seed, 80) for seed in range(30)] + ["", "word1", "…"]
    texts += [f"{texts[3]} {texts[4]}", texts[5].upper(), " ".join(texts[6].split()[:50])]
    index = OverlapIndex([EvaluationItem(str(number), texts[number]) for number in range(8)], 13, 0.5)
    names = [f"d{number}" for number in range(len(texts))]
    together = list(index.overlaps_of(names, texts))
    assert together == [
        overlap for name, text in zip(names, texts, strict=True) for overlap in index.overlaps(name, text)
    ]
    assert {overlap.item for overlap in together if overlap.document == "d33"} == {"3", "4"}
    assert {overlap.item for overlap in together if overlap.document == "d35"} == {"6"}
