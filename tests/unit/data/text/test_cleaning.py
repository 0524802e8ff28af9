"""Cleaning, near-duplicates, the split and the overlap test, on small tables."""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from training.data.tables import text_id
from training.data.text.cleaning import cleaned, mark_exact_duplicates, mark_heldout
from training.data.text.near_duplicates import band_keys, near_duplicates, twins_across
from training.data.text.overlap import EvaluationItem, OverlapIndex
from training.data.text.quiet_daft import daft
from training.data.text.similarity import jaccard, shingle_sets
from training.specs.corpus import CorpusSection, MinHash

WORDS = [f"word{number}" for number in range(2_000)]


def prose(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def table(*texts: str, paths: tuple[str, ...] = ()) -> daft.DataFrame:
    return daft.from_pydict(
        {
            "id": [text_id(text) for text in texts],
            "text": list(texts),
            "source": ["s"] * len(texts),
            "path": list(paths) or [f"{number}.txt" for number in range(len(texts))],
            "licence": [None, *["x"] * (len(texts) - 1)],
            "bytes": [len(text.encode()) for text in texts],
        }
    )


def clean(frame: daft.DataFrame, **limits: Any) -> list[dict[str, Any]]:
    rows = cleaned(frame, CorpusSection(**limits)).to_pylist()
    return sorted(rows, key=lambda row: str(row["path"]))


def test_reasons_to_drop() -> None:
    rows = clean(table("short", "1234567890 " * 30, "x" * 300, prose(1), ""), max_line=2_000)
    assert [row["reason"] for row in rows] == ["too short", "few letters", None, None, "too short"]
    rows = clean(table("x" * 300, "line\n" * 100), max_line=200)
    assert [row["reason"] for row in rows] == ["long line", None]


def test_an_empty_text_is_too_short_whatever_the_limit() -> None:
    assert clean(table("", "a"), min_characters=0)[0]["reason"] == "too short"


def test_texts_get_one_form_and_the_id_follows() -> None:
    forms = ["\ufeffdéjà\r\nvu\rété\n" * 30, "de\u0301ja\u0300\nvu\n\ufeffe\u0301te\u0301\n" * 30]
    rows = clean(table(*forms))
    assert {row["text"] for row in rows} == {"déjà\nvu\nété\n" * 30}
    assert {row["id"] for row in rows} == {row["document"] for row in rows} == {text_id("déjà\nvu\nété\n" * 30)}
    assert rows[0]["bytes"] == len(("déjà\nvu\nété\n" * 30).encode())
    assert [row["reason"] for row in mark_exact_duplicates(cleaned(table(*forms), CorpusSection())).to_pylist()].count(
        "exact duplicate"
    ) == 1


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
    rows = clean(table(text, text, paths=("a.txt", "b.py")), min_letters=0.0)
    assert [row["reason"] for row in rows] == [None, "long line"]


@pytest.mark.parametrize("text", GENERATED.values(), ids=GENERATED)
def test_generated_data_in_one_line_goes(text: str) -> None:
    assert len(text) > 2_000
    assert clean(table(text), min_letters=0.0)[0]["reason"] == "long line"


def test_long_documents_become_parts_of_their_domain() -> None:
    rows = clean(
        table("line of text\n" * 100, prose(2), paths=("net/a.txt#7", "b.txt")),
        max_characters=500,
        domains={"network": ("s/net/*",)},
    )
    parts = [row for row in rows if row["path"].startswith("net/")]
    assert [row["path"] for row in parts] == ["net/a.txt#7#part1", "net/a.txt#7#part2", "net/a.txt#7#part3"]
    assert {row["domain"] for row in parts} == {"network"}
    assert {row["domain"] for row in rows if row["path"].startswith("b.txt")} == {"general"}


def test_the_first_of_exact_duplicates_stays() -> None:
    frame = cleaned(table(prose(1), prose(2), prose(1), paths=("b.txt", "c.txt", "a.txt")), CorpusSection())
    marked = {row["path"]: row["reason"] for row in mark_exact_duplicates(frame).to_pylist()}
    assert marked == {"a.txt": None, "b.txt": "exact duplicate", "c.txt": None}


def edited(text: str, changes: int, seed: int) -> str:
    words, choose = text.split(), random.Random(seed)
    for place in choose.sample(range(len(words)), changes):
        words[place] = f"other{choose.randrange(10**6)}"
    return " ".join(words)


def test_near_duplicates_go_and_different_texts_stay() -> None:
    texts = [prose(seed) for seed in range(20)]
    texts += [
        edited(texts[0], 2, 1),
        edited(texts[0], 1, 2),
        texts[1].upper().replace(" ", ", "),
        edited(texts[2], 60, 3),
    ]
    removed = near_duplicates(table(*texts), MinHash())
    ids = [text_id(text) for text in texts]
    family = {ids[0], ids[20], ids[21]}
    assert set(removed) == (family - {min(family)}) | {max(ids[1], ids[22])}
    assert all(kept not in removed for kept in removed.values())


def similarity(text: str, other: str) -> float:
    left, right = shingle_sets([text, other], 5)
    return jaccard(left, right)


def test_what_stays_holds_no_near_duplicate_and_what_goes_is_near_one_that_stays() -> None:
    base = prose(5)
    texts = [edited(base, 2, seed) for seed in range(30)] + [prose(seed) for seed in range(10, 20)]
    removed = near_duplicates(table(*texts), MinHash())
    assert near_duplicates(table(*random.Random(0).sample(texts, len(texts))), MinHash()) == removed
    assert 10 < len(removed) < 30  # about as similar as the threshold asks, so some pairs are and some are not

    by_id = {text_id(text): text for text in texts}
    assert all(kept not in removed and similarity(by_id[id_], by_id[kept]) >= 0.8 for id_, kept in removed.items())
    rest = [text for id_, text in by_id.items() if id_ not in removed]
    assert all(similarity(left, right) < 0.8 for left, right in itertools.combinations(rest, 2))


def test_twins_at_the_threshold_are_all_found() -> None:
    texts = [prose(seed, 300) for seed in range(200)]
    twins = [edited(text, 6, seed) for seed, text in enumerate(texts)]
    near = [similarity(text, twin) >= 0.8 for text, twin in zip(texts, twins, strict=True)]
    assert 0.75 < sum(map(similarity, texts, twins)) / 200 < 0.87
    assert len(near_duplicates(table(*texts, *twins), MinHash())) == sum(near) > 100


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    spec, draw = MinHash(threshold=threshold), np.random.default_rng(1)
    common = math.ceil(400 * threshold / (1 + threshold))  # of 200 shingles each
    sets = []
    for _ in range(2_000):
        shingles = draw.integers(0, 2**63, 400 - common, dtype=np.uint64)
        sets += [np.sort(shingles[:200]), np.sort(shingles[200 - common :])]
    keys = band_keys(sets, spec)
    assert keys.shape == (4_000, spec.rows_and_bands[1])
    assert (keys[::2] == keys[1::2]).any(axis=1).mean() >= 0.995


def test_too_few_permutations_are_refused() -> None:
    with pytest.raises(ValidationError, match="permutations 16 miss near-duplicates at the threshold 0.3; .* 20"):
        MinHash(permutations=16, threshold=0.3)
    assert MinHash(permutations=20, threshold=0.3).rows_and_bands == (1, 20)


def test_thousands_of_copies_of_one_licence_take_no_longer_than_other_texts() -> None:
    licence = prose(1, 300)
    texts = [f"{licence} held by owner{number}" for number in range(3_000)]
    started = time.process_time()
    removed = near_duplicates(table(*texts), MinHash())
    heldout, train = table(*texts[:1_000]), table(*texts[1_000:])
    assert len(removed) == 2_999
    assert len(twins_across(heldout, train, MinHash())) == 1_000
    assert time.process_time() - started < 30


def test_heldout_twins_of_training_text_are_found() -> None:
    texts = [prose(seed) for seed in range(30)]
    twins = twins_across(table(*texts[:5], edited(texts[20], 1, 0)), table(*texts[5:], texts[2].upper()), MinHash())
    assert twins == {text_id(texts[2]): text_id(texts[2].upper()), text_id(edited(texts[20], 1, 0)): text_id(texts[20])}


def test_short_different_texts_are_not_near_duplicates() -> None:
    assert near_duplicates(table("a b", "c d", "e"), MinHash()) == {}


def test_texts_without_a_word_are_compared_as_they_are() -> None:
    symbols = [mark * count for mark in "!?-*#=" for count in range(1, 6)] + ["\U0001f600", "\U0001f601", "。", "…"]
    assert near_duplicates(table(*symbols), MinHash()) == {}
    assert twins_across(table(*symbols[:10]), table(*symbols[10:]), MinHash()) == {}
    assert twins_across(table("!!!"), table("?", "!!!"), MinHash()) == {text_id("!!!"): text_id("!!!")}


def split(frame: daft.DataFrame, share: float) -> dict[str, bool]:
    return {row["id"]: row["heldout"] for row in mark_heldout(frame, share).to_pylist()}


def corpus(documents: list[str], domain: str = "general", size: int = 100, pieces: int = 1) -> daft.DataFrame:
    rows = [(f"{document}/{piece}", document) for document in documents for piece in range(pieces)]
    return daft.from_pydict(
        {
            "id": [id_ for id_, _ in rows],
            "document": [document for _, document in rows],
            "domain": [domain] * len(rows),
            "bytes": [size] * len(rows),
        }
    )


def test_the_share_is_held_out_and_stays_the_same_as_the_corpus_grows() -> None:
    documents = [str(number) for number in range(2_000)]
    before, after = split(corpus(documents[:1_000]), 0.1), split(corpus(documents), 0.1)
    assert 0.09 < sum(after.values()) / 2_000 < 0.12
    assert sum(after[id_] != held for id_, held in before.items()) < 20


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_both_sides_get_a_document_if_there_are_two(share: float) -> None:
    for count in (2, 3, 5):
        held = list(split(corpus([str(number) for number in range(count)]), share).values())
        assert 0 < sum(held) < count
    assert list(split(corpus(["only"]), share).values()) == [False]


def test_every_domain_is_held_out_in_its_own_share_of_bytes() -> None:
    frame = corpus([f"a{number}" for number in range(400)]).concat(
        corpus([f"net{number}" for number in range(30)], "network")
    )
    heldout = split(frame, 0.1)
    assert sum(held for id_, held in heldout.items() if id_.startswith("net")) >= 3


def test_the_parts_of_a_document_stay_on_one_side() -> None:
    heldout = split(corpus([str(number) for number in range(40)], pieces=3), 0.3)
    sides: dict[str, set[bool]] = {id_.split("/")[0]: set() for id_ in heldout}
    for id_, held in heldout.items():
        sides[id_.split("/")[0]].add(held)
    assert all(len(side) == 1 for side in sides.values())
    assert any(side == {True} for side in sides.values())


def test_one_single_document_is_split_by_its_pieces() -> None:
    held = split(corpus(["story"], pieces=30), 0.1).values()
    assert 0 < sum(held) < 15


@pytest.mark.parametrize("rename", [lambda path: f"moved/{path}", lambda path: f"{path}.gz", lambda path: f"new{path}"])
def test_the_side_of_a_document_follows_from_its_text(rename: Callable[[str], str]) -> None:
    texts = [prose(seed) for seed in range(200)]

    def sides(texts: list[str], paths: list[str]) -> dict[str, bool]:
        frame = cleaned(table(*texts, paths=tuple(paths)), CorpusSection(max_characters=700))
        return split(mark_exact_duplicates(frame), 0.2)

    paths = [f"{number}.txt" for number in range(200)]
    assert sides(texts, paths) == sides(texts[::-1], list(map(rename, paths)))
    other_form = ["\ufeff" + text.replace(" ", "\r\n", 1) for text in texts]
    assert sides([text.replace(" ", "\n", 1) for text in texts], paths) == sides(other_form, paths)


def test_the_parts_of_a_document_are_known_by_its_whole_text() -> None:
    text = prose(1, 400)
    rows = clean(table(text, paths=("story.txt",)), max_characters=700)
    assert len(rows) > 3
    assert {row["document"] for row in rows} == {text_id(text)}
    assert {row["document"] for row in clean(table(text, paths=("other.txt",)), max_characters=900)} == {text_id(text)}


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
