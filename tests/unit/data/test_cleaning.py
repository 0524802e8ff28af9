"""Cleaning, near-duplicates, the split and the overlap test, on small tables."""

from __future__ import annotations

import random
from typing import Any

import pytest

from training.data.cleaning import cleaned, mark_exact_duplicates, mark_heldout
from training.data.near_duplicates import near_duplicates
from training.data.overlap import EvaluationItem, OverlapIndex
from training.data.quiet_daft import daft
from training.data.tables import text_id
from training.specs.corpus import CorpusSection, MinHash

WORDS = [f"word{number}" for number in range(2_000)]


def prose(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def table(*texts: str, paths: tuple[str, ...] = ()) -> daft.DataFrame:
    return daft.from_pydict({
        "id": [text_id(text) for text in texts], "text": list(texts), "source": ["s"] * len(texts),
        "path": list(paths) or [f"{number}.txt" for number in range(len(texts))],
        "licence": [None, *["x"] * (len(texts) - 1)], "bytes": [len(text.encode()) for text in texts]})


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


def test_line_ends_are_made_one_and_the_id_follows() -> None:
    row = clean(table("one\r\ntwo\rthree\n" * 30))[0]
    assert row["text"] == "one\ntwo\nthree\n" * 30
    assert row["id"] == text_id(row["text"])
    assert row["bytes"] == len(row["text"])


def test_long_documents_become_parts_of_their_domain() -> None:
    rows = clean(table("line of text\n" * 100, prose(2), paths=("net/a.txt#7", "b.txt")), max_characters=500,
                 domains={"network": ("s/net/*",)})
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
    texts += [edited(texts[0], 2, 1), edited(texts[0], 1, 2), texts[1].upper().replace(" ", ", "),
              edited(texts[2], 60, 3)]
    removed = near_duplicates(table(*texts), MinHash())
    ids = [text_id(text) for text in texts]
    family = {ids[0], ids[20], ids[21]}
    assert set(removed) == (family - {min(family)}) | {max(ids[1], ids[22])}
    assert all(kept not in removed for kept in removed.values())


def test_near_duplicates_do_not_depend_on_the_order_and_none_remain() -> None:
    base = prose(5)
    texts = [edited(base, 2, seed) for seed in range(30)] + [prose(seed) for seed in range(10, 20)]
    removed = near_duplicates(table(*texts), MinHash())
    shuffled = random.Random(0).sample(texts, len(texts))
    assert near_duplicates(table(*shuffled), MinHash()) == removed
    rest = [text for text in texts if text_id(text) not in removed]
    assert near_duplicates(table(*rest), MinHash()) == {}
    assert 10 < len(removed) < 30  # about as similar as the threshold asks, so some pairs are and some are not


def test_short_different_texts_are_not_near_duplicates() -> None:
    assert near_duplicates(table("a b", "c d", "e"), MinHash()) == {}


def split(frame: daft.DataFrame, share: float) -> dict[str, bool]:
    return {row["path"]: row["heldout"] for row in mark_heldout(frame, share).to_pylist()}


def corpus(paths: list[str], domain: str = "general", size: int = 100) -> daft.DataFrame:
    return daft.from_pydict({"source": ["s"] * len(paths), "path": paths, "domain": [domain] * len(paths),
                             "bytes": [size] * len(paths)})


def test_the_share_is_held_out_and_stays_the_same_as_the_corpus_grows() -> None:
    paths = [f"{number}.txt" for number in range(2_000)]
    before, after = split(corpus(paths[:1_000]), 0.1), split(corpus(paths), 0.1)
    assert 0.09 < sum(after.values()) / 2_000 < 0.12
    assert sum(after[path] != held for path, held in before.items()) < 20


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_both_sides_get_a_document_if_there_are_two(share: float) -> None:
    for count in (2, 3, 5):
        held = list(split(corpus([f"{number}.txt" for number in range(count)]), share).values())
        assert 0 < sum(held) < count
    assert list(split(corpus(["only.txt"]), share).values()) == [False]


def test_every_domain_is_held_out_in_its_own_share_of_bytes() -> None:
    frame = corpus([f"{number}.txt" for number in range(400)]).concat(
        corpus([f"net/{number}.txt" for number in range(30)], "network"))
    found = split(frame, 0.1)
    assert sum(held for path, held in found.items() if path.startswith("net/")) >= 3


def test_the_parts_of_a_document_stay_on_one_side() -> None:
    found = split(corpus([f"{number}.txt#part{part}" for number in range(40) for part in (1, 2, 3)]), 0.3)
    sides: dict[str, set[bool]] = {path.split("#")[0]: set() for path in found}
    for path, held in found.items():
        sides[path.split("#")[0]].add(held)
    assert all(len(side) == 1 for side in sides.values())
    assert any(side == {True} for side in sides.values())


def overlaps(items: dict[str, str], text: str, share: float = 0.5) -> dict[str, float]:
    index = OverlapIndex([EvaluationItem(*item) for item in items.items()], 13, share)
    return {found.item: found.share for found in index.overlaps("d", text)}


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


def test_one_single_document_is_split_by_its_pieces() -> None:
    texts = [f"piece number {number} of one long story" for number in range(30)]
    frame = daft.from_pydict({"id": texts, "source": ["s"] * 30, "domain": ["general"] * 30, "bytes": [40] * 30,
                              "path": [f"story.txt#part{number}" for number in range(1, 31)]})
    held = mark_heldout(frame, 0.1).to_pydict()["heldout"]
    assert 0 < sum(held) < 15
