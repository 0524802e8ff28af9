"""What an evaluation of data finds, and the files that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.specs.base import canonical_json
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, Estimate, EvaluationReport, exact


@dataclass
class Measurement:
    """Metrics of one artifact, each counted over everything or over the sample that a note names.

    Attributes:
        estimates: Metric to its value and the number of items behind it.
        missing: Metric to the reason why it could not be measured.
        causes: Metric to the most likely cause of a bad value; a refusal names it.
        items: Faults: `metric`, `id`, `score` and keys that explain them.
        notes: Lines for the card, such as which metric was measured on a sample.
    """

    estimates: dict[str, Estimate] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    causes: dict[str, str] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: str, value: float, count: int) -> None:
        """Record a metric taken over `count` items."""
        self.estimates[metric] = exact(float(value), count)

    def leave_out(self, metric: str, reason: str) -> None:
        """Record why a metric cannot be measured; its gate fails."""
        self.missing[metric] = reason

    def fail(self, metric: str, item: str, score: float, **details: Any) -> None:
        """Record one item that counts against a metric, by id and with details that explain it."""
        self.items.append({"metric": metric, "id": item, "score": float(score), "weight": 1.0, **details})

    @property
    def report(self) -> EvaluationReport:
        """What report.json holds."""
        return EvaluationReport(estimates=self.estimates, missing=self.missing, causes=self.causes)

    def write(self, folder: Path, asset: str, meanings: Mapping[str, str]) -> None:
        """Write `report.json`, `items.jsonl` and `report/card.md`.

        Args:
            folder: The evaluation's output folder.
            asset: What was judged.
            meanings: What each metric is.
        """
        (folder / REPORT_FILE).write_text(canonical_json(self.report.model_dump(mode="json")) + "\n", encoding="utf-8")
        lines = [canonical_json(item) + "\n" for item in self.items]
        (folder / ITEMS_FILE).write_text("".join(lines), encoding="utf-8")

        card = [
            f"Measured again on the finished files of `{asset}`.",
            "",
            "| metric | value | over | what it is |",
            "|---|--:|--:|---|",
        ]
        for metric, meaning in meanings.items():
            estimate = self.estimates.get(metric)
            if estimate:
                value = f"{estimate.value:.6g} | {estimate.count:,}"
            else:
                value = f"not measured: {self.missing[metric]} | 0"
            card.append(f"| {metric} | {value} | {meaning} |")
        card += ["", *(f"- {note}" for note in self.notes), f"- {len(self.items):,} failing items are in items.jsonl"]
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / "card.md").write_text("\n".join(card) + "\n", encoding="utf-8")
