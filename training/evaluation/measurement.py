"""What an evaluation of data finds, and the files it writes."""

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
        estimates: Metric to what was counted.
        missing: Metric to why it could not be.
        causes: Metric to what most likely made it bad, for the sentence of a refusal.
        items: What was found wrong: `metric`, `id`, `score` and whatever explains it.
        notes: Lines for the card, such as what was measured on a sample.
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
        """Record one item that counts against a metric."""
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
            found = self.estimates.get(metric)
            value = f"{found.value:.6g} | {found.count:,}" if found else f"not measured: {self.missing[metric]} | 0"
            card.append(f"| {metric} | {value} | {meaning} |")
        card += ["", *(f"- {note}" for note in self.notes), f"- {len(self.items):,} failing items are in items.jsonl"]
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / "card.md").write_text("\n".join(card) + "\n", encoding="utf-8")
