"""Gates in a real MLflow store: the table, and the description of a model's version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.gates.wording import gates_markdown
from pipeline.tracking import records
from pipeline.tracking.connection import Connection
from training.specs.artifacts import Certificate
from training.specs.gates import AgainstChampion, Verdict


@pytest.fixture
def certificate() -> Certificate:
    against = AgainstChampion(version="v0", value=2.25, worse_by=0.25, worse_by_bound=0.375, margin=0.5, passed=True)
    verdict = Verdict(
        name="loss_drop",
        passed=True,
        value=2.0,
        must_be=">=",
        threshold=1.0,
        reason="it passes",
        confidence=0.95,
        interval=(1.5, 2.5),
        method="bootstrap",
        count=40,
        champion=against,
    )
    return Certificate(
        asset="base_model",
        version="v1",
        artifact_digest="d",
        suite_digest="s",
        evaluator_fingerprint="e",
        evaluation_version="v2",
        report_digest="r",
        items_digest="i",
        thresholds_digest="t",
        champion="v0",
        verdicts=(verdict,),
        evaluated_at=0.0,
        issued_at=0.0,
        issued_by="test",
    )


@pytest.fixture
def client(tmp_path: Path) -> Any:
    return Connection(f"sqlite:///{tmp_path / 'mlflow.db'}").client()


def test_the_table_of_gates_has_interval_and_champion(client: Any, certificate: Certificate, tmp_path: Path) -> None:
    experiment = client.create_experiment("tiny", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    records.log_evaluation(client, run, None, certificate, None)
    table = json.loads(Path(client.download_artifacts(run, "gates.json", str(tmp_path))).read_bytes())
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == {
        "metric": "loss_drop",
        "value": 2.0,
        "interval": "1.5 to 2.5",
        "method": "bootstrap",
        "items": 40,
        "must be": ">=",
        "threshold": 1.0,
        "champion": 2.25,
        "verdict": "passed",
        "reason": "it passes",
    }
    assert client.get_run(run).data.metrics["eval/loss_drop"] == 2.0


def test_a_long_card_is_cut_and_its_table_of_gates_is_not(client: Any, certificate: Certificate) -> None:
    client.create_registered_model("base_model")
    version = client.create_model_version("base_model", "file:///nowhere").version
    table = gates_markdown(certificate)
    records.describe(client, "base_model", version, f"# Card\n{'x' * 9000}\n{table}")
    shown = client.get_model_version("base_model", version).description
    assert shown.startswith("# Card\nxxx") and shown.endswith(table) and len(shown) == 5000
    records.describe(client, "base_model", version, f"# Card\n\n{table}")
    assert client.get_model_version("base_model", version).description == f"# Card\n\n{table}"
