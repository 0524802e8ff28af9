"""Runs the stages that gather conversations and judged answers on files of a test, and measures what they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.tokens import parts
from training.data.tables import read_rows
from training.errors import UserError
from training.job.context import InputArtifact
from training.specs.conversations import ConversationsSection, PreferencesSection
from training.specs.evaluation import EvaluationSection
from training.specs.evidence import EvaluationReport
from training.specs.metrics import METRICS
from training.stages import conversations, evaluate_data, preferences


@dataclass(frozen=True)
class Made:
    """What a stage made of a folder of files."""

    folder: Path
    artifact: InputArtifact
    metrics: dict[str, float]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of both splits with their messages parsed."""
        rows = [row for split in ("train", "heldout") for row in read_rows(self.folder / f"{split}.parquet")]
        for row in rows:
            for key in ("messages", "prompt", "chosen", "rejected"):
                if key in row:
                    row[key] = json.loads(row[key])
        return rows

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """Place and reason of the rows that were dropped."""
        lines = (self.folder / "report" / "dropped.jsonl").read_text().splitlines()
        return [(row["where"], row["reason"]) for row in map(json.loads, lines)]

    @property
    def skipped(self) -> list[str]:
        """Messages of bad rows."""
        lines = (self.folder / "report" / "skipped.jsonl").read_text().splitlines()
        return [json.loads(line)["message"] for line in lines]

    def measured(self) -> dict[str, float]:
        """The metrics of its evaluation."""
        out = self.folder.parent / f"{self.folder.name}-evaluation"
        context = parts.context_of(out, f"{self.artifact.manifest.asset}.evaluation", EvaluationSection(), {})
        context.inputs["artifact"] = self.artifact
        metrics = dict(evaluate_data.run(context).metrics)
        report = EvaluationReport.model_validate_json((out / "report.json").read_bytes())
        assert {*report.estimates, *report.missing} == set(METRICS[self.artifact.manifest.asset])
        return metrics


Gather = Callable[..., Made]


def lines(path: Path, *rows: Any) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _gather(tmp_path: Path, stage: Any, section: type, name: str) -> Gather:
    def gather(*rows: Any, path: Path | None = None, source: dict[str, Any] | None = None, **options: Any) -> Made:
        path = path or lines(tmp_path / "a.jsonl", *rows)
        out = tmp_path / f"{name}-{len(list(tmp_path.glob(f'{name}-*')))}"
        sources = ({"name": "s", "path": str(path), **(source or {})},)
        result = stage.run(parts.context_of(out, name, section(**{"sources": sources, "heldout": 0.0, **options}), {}))
        artifact = InputArtifact(out, parts.artifact(tmp_path / "unused", name).manifest)
        return Made(out, artifact, dict(result.metrics))

    return gather


@pytest.fixture
def talk(tmp_path: Path) -> Gather:
    """Gather conversations of rows or of a file."""
    return _gather(tmp_path, conversations, ConversationsSection, "conversations")


@pytest.fixture
def judged(tmp_path: Path) -> Gather:
    """Gather pairs of rows or of a file."""
    return _gather(tmp_path, preferences, PreferencesSection, "preferences")


def refusal(gather: Gather, *rows: Any, **options: Any) -> str:
    """What a person is told of rows that stop the job."""
    with pytest.raises(UserError) as caught:
        gather(*rows, **options)
    return str(caught.value)
