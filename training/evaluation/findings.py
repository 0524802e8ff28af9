"""What an evaluation of a model found: estimates with their items, and why something could not be measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.specs.base import canonical_json
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, Estimate, EvaluationReport, exact

Row = dict[str, Any]


@dataclass
class Findings:
    """Evidence so far. A metric that could not be measured has a reason instead, and a gate on it fails.

    Attributes:
        estimates: Metric to its estimate.
        missing: Metric to the reason why it has none.
        items: Metric to its rows: `id`, `score`, `weight`, and keys that explain them.
    """

    estimates: dict[str, Estimate] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    items: dict[str, list[Row]] = field(default_factory=dict)

    def ratio(
        self,
        metric: str,
        rows: Iterable[Row],
        absent: str,
        offset: float = 0.0,
        scale: float = 1.0,
        exponential: bool = False,
    ) -> None:
        """Record a function of the rows' summed scores over their summed weights; see `Estimate`.

        Args:
            metric: Its name.
            rows: `id`, `score`, `weight` (1 where it is left out), and what explains them.
            absent: Why there are no rows, if there are none.
            offset: As in `Estimate`.
            scale: As in `Estimate`.
            exponential: As in `Estimate`.
        """
        form = Estimate(value=0.0, count=0, method="bootstrap", offset=offset, scale=scale, exponential=exponential)
        self._record(metric, list(rows), absent, form)

    def share(self, metric: str, rows: Iterable[Row], absent: str) -> None:
        """Record the share of rows that are right: their `score` is a truth value, and `absent` is as in `ratio`."""
        self._record(metric, list(rows), absent, Estimate(value=0.0, count=0, method="wilson"))

    def task(self, metric: str, rows: Iterable[Row], absent: str) -> None:
        """Record the mean score of a task's rows: a share where each row is right or wrong, else a ratio."""
        scored = list(rows)
        right_or_wrong = all(row["score"] in (0, 1) and row.get("weight", 1) == 1 for row in scored)
        (self.share if right_or_wrong else self.ratio)(metric, scored, absent)

    def exact(self, metric: str, value: float, count: int, rows: Iterable[Row] = ()) -> None:
        """Record what was counted over everything, with no uncertainty; rows only explain it."""
        self.estimates[metric] = exact(value, count)
        self.items[metric] = [_plain(row) for row in rows]

    def leave_out(self, metric: str, reason: str) -> None:
        """Record why a metric is missing, and forget what was recorded of it before."""
        self.estimates.pop(metric, None)
        self.items.pop(metric, None)
        self.missing[metric] = reason

    def _record(self, metric: str, rows: list[Row], absent: str, form: Estimate) -> None:
        """Record an estimate of the form, or why its value is not a finite number."""
        plain = [_plain(row) for row in rows]
        reason, value = absent, math.nan
        if plain:
            value = form.of(math.fsum(row["score"] for row in plain), math.fsum(row["weight"] for row in plain))
            strange = [row["id"] for row in plain if not math.isfinite(row["score"])]
            reason = f"the score of its item {strange[0]} is not finite" if strange else f"its value is {value}"
        if not math.isfinite(value):
            self.leave_out(metric, reason)
            return
        self.estimates[metric] = form.model_copy(update={"value": value, "count": len(plain)})
        self.items[metric] = plain

    def report(self, names: Iterable[str]) -> EvaluationReport:
        """The report on the named metrics; each was measured or is missing for a reason."""
        metrics = list(names)
        return EvaluationReport(
            estimates={name: self.estimates[name] for name in metrics if name in self.estimates},
            missing={name: self.missing[name] for name in metrics if name not in self.estimates},
        )

    def write(self, folder: Path, report: EvaluationReport) -> None:
        """Write report.json and items.jsonl, numbers in full: a judge computes the values again."""
        text = report.model_dump_json(indent=1)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")

        lines = [
            canonical_json({"metric": metric, **row}) + "\n"
            for metric in report.estimates
            for row in self.items[metric]
        ]
        (folder / ITEMS_FILE).write_text("".join(lines), encoding="utf-8")


def _plain(row: Mapping[str, Any]) -> Row:
    return {**row, "score": float(row["score"]), "weight": float(row.get("weight", 1.0))}
