"""The held-out split: decided by the digests of documents alone."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.tables import fraction
from training.data.text.heldout import draw_heldout


def split(documents: list[str], share: float, domains: list[str] | None = None, size: int = 100) -> list[bool]:
    """Whether each text is held out, given the digest of its document."""
    numbers = np.unique(domains or ["general"] * len(documents), return_inverse=True)[1]
    draws = np.array([fraction(document) for document in documents])
    return list(map(bool, draw_heldout(numbers, draws, np.full(len(documents), size), share)))


def test_the_share_is_held_out_and_stays_the_same_as_the_corpus_grows() -> None:
    documents = [str(number) for number in range(2_000)]
    before, after = split(documents[:1_000], 0.1), split(documents, 0.1)
    assert 0.09 < sum(after) / 2_000 < 0.12
    assert sum(then != now for then, now in zip(before, after[:1_000], strict=True)) < 20


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_both_sides_get_a_document_if_there_are_two(share: float) -> None:
    for count in (2, 3, 5):
        assert 0 < sum(split([str(number) for number in range(count)], share)) < count
    assert split(["only"], share) == [False]


def test_every_domain_is_held_out_in_its_own_share_of_bytes() -> None:
    documents = [f"a{number}" for number in range(400)] + [f"net{number}" for number in range(30)]
    heldout = split(documents, 0.1, ["general"] * 400 + ["network"] * 30)
    assert sum(heldout[400:]) >= 3


def test_the_parts_of_a_document_stay_on_one_side() -> None:
    documents = [str(number) for number in range(40) for _ in range(3)]
    heldout = np.array(split(documents, 0.3)).reshape(40, 3)
    assert (heldout.all(axis=1) | ~heldout.any(axis=1)).all()
    assert heldout.any()


def test_the_long_document_of_a_small_domain_does_not_swallow_the_split() -> None:
    draws = np.array([0.2, 0.4, 0.6, 0.8])
    sizes = np.array([100, 100_000, 100, 100])
    assert draw_heldout(np.zeros(4, np.int64), draws, sizes, 0.1).tolist() == [True, False, False, False]
