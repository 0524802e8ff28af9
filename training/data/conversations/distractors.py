"""Wrong answers for items: other items' right answers of the same kind."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from training.data.conversations.items import Item
from training.data.tables import fraction


class WrongAnswers:
    """Right answers of other items, found by kind, domain and length.

    Args:
        items: The pool, in any order.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        pools: dict[tuple[str, str], set[str]] = defaultdict(set)
        for item in items:
            pools[item.kind, item.domain].add(item.answer)
            pools[item.kind, ""].add(item.answer)
        self._pools = {key: sorted(answers, key=lambda answer: (len(answer), answer)) for key, answers in pools.items()}

    def similar_in_length(self, item: Item, count: int) -> list[str]:
        """The `count` answers nearest in length that differ from the right one and from each other.

        They are of the item's domain if it has enough, else of all domains. Fewer are returned if there are no more.
        """
        for domain in (item.domain, ""):
            found = self._nearest(self._pools.get((item.kind, domain), []), item.answer, count)
            if len(found) == count:
                break
        return found

    def of_kind(self, kind: str, item: Item) -> str | None:
        """An answer of any domain and length, chosen by the item's digest; None if there is no other one."""
        pool = self._pools.get((kind, ""), [])
        start = int(fraction("wrong answer", item.id) * len(pool))
        return next((answer for answer in [*pool[start:], *pool[:start]] if not same_answer(answer, item.answer)), None)

    @staticmethod
    def _nearest(pool: list[str], right: str, count: int) -> list[str]:
        low = bisect_left(pool, (len(right), right), key=lambda answer: (len(answer), answer)) - 1
        high = low + 1
        found: list[str] = []
        while len(found) < count and (low >= 0 or high < len(pool)):
            shorter = len(right) - len(pool[low]) if low >= 0 else None
            longer = len(pool[high]) - len(right) if high < len(pool) else None
            if longer is None or (shorter is not None and shorter <= longer):
                answer, low = pool[low], low - 1
            else:
                answer, high = pool[high], high + 1
            if not any(same_answer(answer, other) for other in (right, *found)):
                found.append(answer)
        return found


def same_answer(one: str, other: str) -> bool:
    """Whether two answers differ in nothing but case, composed characters, white space and a full stop."""
    return _plain(one) == _plain(other)


def _plain(answer: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFD", answer).casefold()).split()).strip(" .")
