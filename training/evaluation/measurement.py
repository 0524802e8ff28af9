"""What an evaluation of data finds, and the files it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.specs.base import canonical_json


@dataclass
class Measurement:
    """Metrics of one artifact; what cannot be measured is left out.

    Attributes:
        metrics: Name to value.
        counts: Name to the number of items the value was taken over.
        items: What was found wrong: `metric`, `id`, `score` and whatever explains it.
        notes: Lines for the card, such as what was measured on a sample.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: str, value: float, count: int) -> None:
        """Record a metric taken over `count` items."""
        self.metrics[metric] = float(value)
        self.counts[metric] = count

    def fail(self, metric: str, item: str, score: float, **details: Any) -> None:
        """Record one item that counts against a metric."""
        self.items.append({"metric": metric, "id": item, "score": score, **details})

    def write(self, folder: Path, asset: str, meanings: dict[str, str]) -> None:
        """Write `report.json`, `items.jsonl` and `report/card.md`.

        Args:
            folder: The evaluation's output folder.
            asset: What was judged.
            meanings: What each metric is.
        """
        report = {"metrics": self.metrics, "counts": self.counts}
        (folder / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
        lines = [canonical_json(item) + "\n" for item in self.items]
        (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")
        card = [f"Measured again on the finished files of `{asset}`.", "", "| metric | value | over | what it is |",
                "|---|--:|--:|---|"]
        for metric, meaning in meanings.items():
            value = f"{self.metrics[metric]:.6g}" if metric in self.metrics else "could not be measured"
            card.append(f"| {metric} | {value} | {self.counts.get(metric, 0):,} | {meaning} |")
        card += ["", *(f"- {note}" for note in self.notes), f"- {len(self.items):,} failing items are in items.jsonl"]
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / "card.md").write_text("\n".join(card) + "\n", encoding="utf-8")
