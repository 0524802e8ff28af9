"""Distractors, the wrong answers that stand beside a right one: other items' right answers of the same kind."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from training.data.conversations.items import Item
from training.data.tables import fraction

_EVERY_DOMAIN = ""


class Distractors:
    """Right answers of other items, found by kind, domain and length.

    Args:
        items: The pool, in any order.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        pools: dict[tuple[str, str], set[str]] = defaultdict(set)
        for item in items:
            pools[item.kind, item.domain].add(item.answer)
            pools[item.kind, _EVERY_DOMAIN].add(item.answer)
        self._pools = {key: sorted(answers, key=_by_length) for key, answers in pools.items()}

    def similar_in_length(self, item: Item, count: int) -> list[str]:
        """The `count` answers nearest in length that differ from the right one and from each other.

        Length is what a reader or a model could otherwise tell the right answer by. The distractors are of the item's
        domain if it has enough, else of all domains. Fewer are returned if there are no more.
        """
        for domain in (item.domain, _EVERY_DOMAIN):
            nearest = self._nearest(self._pools.get((item.kind, domain), []), item.answer, count)
            if len(nearest) == count:
                break
        return nearest

    def of_kind(self, kind: str, item: Item) -> str | None:
        """An answer of any domain and length, chosen by the item's digest; None if there is no other one."""
        pool = self._pools.get((kind, _EVERY_DOMAIN), [])
        start = int(fraction("wrong answer", item.id) * len(pool))
        return next((answer for answer in [*pool[start:], *pool[:start]] if not same_answer(answer, item.answer)), None)

    @staticmethod
    def _nearest(pool: list[str], right: str, count: int) -> list[str]:
        """Walk from the place of the right answer to both sides, the nearer side first."""
        low = bisect_left(pool, _by_length(right), key=_by_length) - 1
        high = low + 1
        nearest: list[str] = []
        while len(nearest) < count and (low >= 0 or high < len(pool)):
            shorter_by = len(right) - len(pool[low]) if low >= 0 else None
            longer_by = len(pool[high]) - len(right) if high < len(pool) else None
            if longer_by is None or (shorter_by is not None and shorter_by <= longer_by):
                answer, low = pool[low], low - 1
            else:
                answer, high = pool[high], high + 1

            if not any(same_answer(answer, other) for other in (right, *nearest)):
                nearest.append(answer)
        return nearest


def _by_length(answer: str) -> tuple[int, str]:
    return len(answer), answer


def same_answer(left: str, right: str) -> bool:
    """Whether two answers differ in nothing but case, composed characters, white space and full stops at the ends."""
    return _plain(left) == _plain(right)


def _plain(answer: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFD", answer).casefold()).split()).strip(" .")
