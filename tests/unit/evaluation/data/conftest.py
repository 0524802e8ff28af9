from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.data.tokens import parts
from training.data.tables import read_rows
from training.job.context import InputArtifact
from training.specs.evaluation import EvaluationSection
from training.specs.evidence import EvaluationReport, Item
from training.specs.execution import Execution
from training.specs.metrics import METRICS
from training.stages import evaluate_data

Measure = Callable[..., dict[str, float]]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InputArtifact]:
    root = tmp_path_factory.mktemp("built")
    corpus = parts.corpus_artifact(root / "corpus")
    general = [row["id"] for row in read_rows(corpus.folder / "train", ["id", "domain"]) if row["domain"] == "general"]
    artifacts = {
        "corpus": corpus,
        "tokenizer": parts.tokenizer_artifact(root / "tokenizer", corpus),
        "evaluation_sets": parts.sets_artifact(root / "sets", general[:2]),
    }
    return {**artifacts, "packed_shards": parts.shards_artifact(root / "shards", artifacts)}


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """Run the stage on an artifact; the metrics of its report."""

    def run(artifact: InputArtifact, threads: int | None = None, **inputs: InputArtifact) -> dict[str, float]:
        out = tmp_path / f"evaluation-{len(list(tmp_path.glob('evaluation-*')))}"
        asset = f"{artifact.manifest.asset}.evaluation"
        context = parts.context_of(out, asset, EvaluationSection(), {"artifact": artifact, **inputs})
        result = evaluate_data.run(dataclasses.replace(context, execution=Execution(threads=threads)))
        report = EvaluationReport.model_validate_json((out / "report.json").read_bytes())
        assert report.metrics == result.metrics
        assert {*report.estimates, *report.missing} == set(METRICS[artifact.manifest.asset]), (
            "measured, or said why not"
        )
        assert {estimate.method for estimate in report.estimates.values()} == {"exact"}
        for line in (out / "items.jsonl").read_text().splitlines():
            Item.model_validate({name: value for name, value in json.loads(line).items() if name in Item.model_fields})
        return dict(result.metrics)

    return run
