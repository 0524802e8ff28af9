"""Near-duplicate removal: which go, which stay, and that neither files, ranges nor buckets decide it."""

from __future__ import annotations

import itertools
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.unit.data.text.corpus_steps import Steps, raw_rows, removed_of
from training.data.tables import text_id
from training.data.text import near_duplicates as steps
from training.data.text.minhash import band_keys
from training.data.text.similarity import jaccard, shingle_sets
from training.specs.corpus import MinHash

WORDS = [f"word{number}" for number in range(2_000)]


def prose(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def edited(text: str, changes: int, seed: int) -> str:
    words, choose = text.split(), random.Random(seed)
    for place in choose.sample(range(len(words)), changes):
        words[place] = f"other{choose.randrange(10**6)}"
    return " ".join(words)


def test_near_duplicates_go_and_different_texts_stay(tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(20)]
    texts += [
        edited(texts[0], 2, 1),
        edited(texts[0], 1, 2),
        texts[1].upper().replace(" ", ", "),
        edited(texts[2], 60, 3),
    ]
    removed = removed_of(tmp_path, texts)
    ids = [text_id(text) for text in texts]
    family = {ids[0], ids[20], ids[21]}
    assert set(removed) == (family - {min(family)}) | {max(ids[1], ids[22])}
    assert all(kept not in removed for kept in removed.values())


def similarity(text: str, other: str) -> float:
    left, right = shingle_sets([text, other], 5)
    return jaccard(left, right)


def test_what_stays_holds_no_near_duplicate_and_what_goes_is_near_one_that_stays(tmp_path: Path) -> None:
    base = prose(5)
    texts = [edited(base, 2, seed) for seed in range(30)] + [prose(seed) for seed in range(10, 20)]
    removed = removed_of(tmp_path / "a", texts)
    assert removed_of(tmp_path / "b", random.Random(0).sample(texts, len(texts))) == removed
    assert 10 < len(removed) < 30  # about as similar as the threshold asks, so some pairs are and some are not

    by_id = {text_id(text): text for text in texts}
    assert all(kept not in removed and similarity(by_id[id_], by_id[kept]) >= 0.8 for id_, kept in removed.items())
    rest = [text for id_, text in by_id.items() if id_ not in removed]
    assert all(similarity(left, right) < 0.8 for left, right in itertools.combinations(rest, 2))


def test_twins_at_the_threshold_are_all_found(tmp_path: Path) -> None:
    texts = [prose(seed, 300) for seed in range(200)]
    twins = [edited(text, 6, seed) for seed, text in enumerate(texts)]
    near = [similarity(text, twin) >= 0.8 for text, twin in zip(texts, twins, strict=True)]
    assert 0.75 < sum(map(similarity, texts, twins)) / 200 < 0.87
    assert len(removed_of(tmp_path, [*texts, *twins])) == sum(near) > 100


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


def test_thousands_of_copies_of_one_licence_take_no_longer_than_other_texts(tmp_path: Path) -> None:
    licence = prose(1, 300)
    texts = [f"{licence} held by owner{number}" for number in range(3_000)]
    started = time.process_time()
    assert len(removed_of(tmp_path / "a", texts)) == 2_999
    assert len(Steps(tmp_path / "b", raw_rows(*texts)).twins_across(texts[:1_000])) == 1_000
    assert time.process_time() - started < 30


def test_heldout_twins_of_training_text_are_found(tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(30)]
    heldout, train = [*texts[:5], edited(texts[20], 1, 0)], [*texts[5:], texts[2].upper()]
    twins = Steps(tmp_path, raw_rows(*heldout, *train), parts=3, ranges=2).twins_across(heldout)
    assert twins == {text_id(texts[2]), text_id(edited(texts[20], 1, 0))}


def test_short_different_texts_are_not_near_duplicates(tmp_path: Path) -> None:
    assert removed_of(tmp_path, ["a b", "c d", "e"]) == {}


def test_texts_without_a_word_are_compared_as_they_are(tmp_path: Path) -> None:
    symbols = [mark * count for mark in "!?-*#=" for count in range(1, 6)] + ["\U0001f600", "\U0001f601", "。", "…"]
    steps_ = Steps(tmp_path, raw_rows(*symbols))
    assert steps_.near_duplicates() == {}
    assert steps_.twins_across(symbols[:10]) == set()


def test_a_chain_of_near_twins_keeps_its_unlike_links(tmp_path: Path) -> None:
    words = prose(0, 300).split()
    chain = []
    for number in range(40):
        chain.append(" ".join(words))
        words = [*words[6:], *(f"new{number}x{place}" for place in range(6))]
    assert similarity(chain[0], chain[1]) > 0.9
    assert similarity(chain[0], chain[-1]) < 0.2

    removed = removed_of(tmp_path, chain)
    by_id = {text_id(text): text for text in chain}
    assert len(removed) < 36
    assert all(kept not in removed and similarity(by_id[id_], by_id[kept]) >= 0.8 for id_, kept in removed.items())
    kept = [text for id_, text in by_id.items() if id_ not in removed]
    assert all(similarity(left, right) < 0.8 for left, right in itertools.combinations(kept, 2))


def test_files_ranges_and_buckets_do_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [prose(seed) for seed in range(60)]
    texts += [edited(text, changes, changes) for text in texts[:30] for changes in (1, 2)]
    removed = removed_of(tmp_path / "one", texts)
    assert len(removed) > 30
    monkeypatch.setattr(steps, "_BAND_BYTES", 2_000)
    monkeypatch.setattr(steps, "_BUCKET_BYTES", 5_000)
    assert removed_of(tmp_path / "many", texts, parts=7, ranges=5) == removed
    assert len(list((tmp_path / "many" / "parts" / "compare_bands").iterdir())) > 10
    assert len(list((tmp_path / "many" / "parts" / "remove_near-duplicates").iterdir())) > 10


def test_exact_copies_go_first_whatever_their_script(tmp_path: Path) -> None:
    chinese = "今天开会讨论了新的计划，大家都觉得这个办法很好。" * 4
    made = Steps(tmp_path, raw_rows(*["thank you very much"] * 5, *[chinese] * 3), parts=3, ranges=4)
    assert sorted(made.ids) == sorted([text_id("thank you very much"), text_id(chinese)])
    assert made.near_duplicates() == {}
