"""The items behind a verdict that a person wants to see: the worst ones, and those that the champion did better."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.gates.evidence_reader import Evidence, Row
from training.specs.evidence import Estimate, Item
from training.specs.gates import Gate

LONGEST = 600
_JUDGED = frozenset(Item.model_fields)
_ASKED = ("prompt", "question")
_NUMBERS_OF_THE_SCORE = frozenset({"nats", "tokens", "bytes"})


@dataclass(frozen=True)
class ShownItem:
    """One item for people.

    Attributes:
        value: What the metric would be on this item alone; for an exact metric the item's score.
        details: What explains it, such as prompt and answer, cut to a readable length.
        champion: The champion's value on it; None where it was not compared.
        champion_details: What explains that, where it is not the same.
    """

    id: str
    value: float
    details: Mapping[str, str]
    champion: float | None = None
    champion_details: Mapping[str, str] = field(default_factory=dict)


def worst_items(evidence: Evidence, gate: Gate, limit: int) -> list[ShownItem]:
    """The items that pull a gate's metric away from its threshold the most, worst first; of a share, the wrong ones."""
    estimate = evidence.estimates.get(gate.metric)
    if estimate is None:
        return []
    if estimate.method == "exact":
        return [_exact(row) for row in evidence.rows.get(gate.metric, [])[:limit]]

    items = evidence.items[gate.metric]
    if estimate.method == "wilson":
        items = tuple(item for item in items if not is_right(gate, item.score))
    worst_first = sorted(items, key=lambda item: (-_badness(gate, _alone(estimate, item)), item.id))
    return [_shown(evidence, gate.metric, estimate, item) for item in worst_first[:limit]]


def regressions(evidence: Evidence, champion: Evidence, gate: Gate, limit: int) -> list[ShownItem]:
    """Items on which the champion did better, the largest difference first."""
    estimate, reference = evidence.estimates.get(gate.metric), champion.estimates.get(gate.metric)
    if estimate is None or reference is None or "exact" in (estimate.method, reference.method):
        return []

    before = {item.id: item for item in champion.items[gate.metric]}
    worse = [
        (_badness(gate, _alone(estimate, item)) - _badness(gate, _alone(reference, before[item.id])), item)
        for item in evidence.items[gate.metric]
        if item.id in before
    ]
    chosen = sorted(((by, item) for by, item in worse if by > 0), key=lambda pair: (-pair[0], pair[1].id))[:limit]

    rows = {row["id"]: row for row in champion.rows[gate.metric]}
    return [
        _shown(evidence, gate.metric, estimate, item, _alone(reference, before[item.id]), details(rows[item.id]))
        for _, item in chosen
    ]


def is_right(gate: Gate, score: float) -> bool:
    """Whether an item of a share counts for its gate: 1 where more is better, 0 where less is."""
    return score == 1 if gate.better > 0 else score == 0 if gate.better < 0 else score == gate.threshold


def details(row: Row) -> dict[str, str]:
    """The keys of an item's line that explain it, as text; what was asked comes first."""
    explaining = [key for key in row if key not in _JUDGED | _NUMBERS_OF_THE_SCORE]
    return {key: text(row[key]) for key in sorted(explaining, key=lambda key: key not in _ASKED)}


def text(value: Any) -> str:
    """A value of an item's line for people, cut to a readable length."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _alone(estimate: Estimate, item: Item) -> float:
    """What the metric would be on this item alone."""
    return estimate.of(item.score, item.weight)


def _badness(gate: Gate, value: float) -> float:
    """How far a value pulls away from what the gate asks for; of an equality, in either direction."""
    return -gate.better * value if gate.better else abs(value - gate.threshold)


def _shown(
    evidence: Evidence,
    metric: str,
    estimate: Estimate,
    item: Item,
    champion: float | None = None,
    champion_details: Mapping[str, str] | None = None,
) -> ShownItem:
    explained = _details_of(evidence, metric, item.id)
    differing = {key: value for key, value in (champion_details or {}).items() if explained.get(key) != value}
    return ShownItem(item.id, _alone(estimate, item), explained, champion, differing)


def _details_of(evidence: Evidence, metric: str, item_id: str) -> dict[str, str]:
    """What explains an item: by its own line, or by another metric's line about the same text."""
    for rows in (evidence.rows[metric], *evidence.rows.values()):
        for row in rows:
            if row["id"] == item_id and (explained := details(row)):
                return explained
    return {}


def _exact(row: Row) -> ShownItem:
    score = row.get("score")
    return ShownItem(text(row.get("id", "")), float(score) if isinstance(score, int | float) else 0.0, details(row))
