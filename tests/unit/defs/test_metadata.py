"""Dagster's pages of a version and of a gate, and the webhook."""

from __future__ import annotations

import base64
import json
import logging
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs import webhook
from pipeline.defs.metadata import (
    MAX_PICTURE,
    Assessment,
    check_description,
    check_metadata,
    materialization_metadata,
    verdict_table,
)
from pipeline.defs.sparkline import loss_sparkline
from training.specs.artifacts import Certificate, FileEntry, InputRecord, Manifest, Waiver
from training.specs.evidence import EvaluationReport, exact
from training.specs.gates import AgainstChampion, Verdict

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 1000
LINKS = {"mlflow_url": "http://127.0.0.1:5000/#/experiments/1/runs/2", "mlflow_run_id": "2"}


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        asset="base_model",
        version="v1",
        stage="base_model",
        recipe="tiny",
        identity="i" * 64,
        fingerprint="f" * 64,
        digest="d" * 64,
        files={"a": FileEntry(bytes=2_500_000, sha256="0")},
        inputs={"tokenizer": InputRecord(asset="tokenizer", version="v0", digest="e" * 64)},
        metrics={"loss": 3.25, "tokens": 1000.0},
        headline="loss",
        section={},
        seed=0,
        versions={"torch": "2.13.0"},
        started_at=0.0,
        seconds=12.0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    report = tmp_path / "version" / "report"
    report.mkdir(parents=True)
    (report / "loss.png").write_bytes(PNG)
    (report / "card.md").write_text("# Base model")
    (report / "samples.json").write_text(
        json.dumps(
            [
                {"prompt": "p" * 1000, "tokens": 3, "score": 1, "stopped": True},
                {"prompt": "q", "tokens": 4, "score": 0.5, "extra": ["x"]},
            ]
        )
    )
    return report.parent


WAIVER = Waiver(
    asset="base_model",
    version="v1",
    gate="choice_accuracy_dcpmi",
    reason="known",
    author="ada",
    until=date(2026, 12, 31),
    created_at=0.0,
)


@pytest.fixture
def certificate() -> Certificate:
    against = AgainstChampion(version="v0", value=2.25, worse_by=0.25, worse_by_bound=0.375, margin=0.5, passed=True)
    verdicts = (
        Verdict(
            name="loss_drop",
            passed=True,
            value=2.0,
            must_be=">=",
            threshold=1.0,
            reason="loss_drop 2 passes >= 1",
            confidence=0.95,
            interval=(1.5, 2.5),
            method="bootstrap",
            count=40,
            champion=against,
        ),
        Verdict(
            name="choice_accuracy_dcpmi",
            passed=False,
            value=None,
            must_be=">",
            threshold=0.3,
            reason="choice_accuracy_dcpmi is missing from the evaluation report",
        ),
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
        verdicts=verdicts,
        evaluated_at=0.0,
        issued_at=0.0,
        issued_by="test",
    )


UNJUDGED = Assessment(problem="the evaluation ran out of memory")
SHOWN_INLINE = 1000
"""Dagster hides longer Markdown behind a link."""


@pytest.fixture
def assessment(certificate: Certificate, tmp_path: Path) -> Assessment:
    evaluation = tmp_path / "evaluation"
    (evaluation / "report").mkdir(parents=True)
    report = EvaluationReport(estimates={"heldout_perplexity": exact(27.031, 40), "loss_drop": exact(2.0, 40)})
    (evaluation / "report.json").write_text(report.model_dump_json())
    (evaluation / "report" / "samples.json").write_text(
        json.dumps(
            [{"prompt": f"What is {index}?", "answer": "*A* number.\n" * 50, "parent": "x"} for index in range(20)]
        )
    )
    return Assessment(certificate, evaluation, "v0")


def test_metrics_are_numbers_that_dagster_plots(manifest: Manifest, folder: Path, assessment: Assessment) -> None:
    page = materialization_metadata(manifest, folder, assessment, reused=False, store_uri="/store/v1", links=LINKS)
    plotted = {name: value.value for name, value in page.items() if isinstance(value, dg.FloatMetadataValue)}
    assert plotted == {"heldout_perplexity": 27.031, "loss_drop": 2.0, "megabytes": 2.5, "job_seconds": 12.0}
    assert page["job_metrics"].value == {"loss": 3.25, "tokens": 1000.0}
    assert page["headline"].value == "heldout_perplexity 27.03"
    assert page["mlflow_run"] == dg.MetadataValue.url(LINKS["mlflow_url"])
    assert page["card"] == dg.MetadataValue.md("# Base model")
    assert page["reused"].value is False


def test_the_page_opens_with_what_people_look_for_and_ends_with_hashes(
    manifest: Manifest, folder: Path, assessment: Assessment
) -> None:
    write_losses(folder, 1500)
    page = list(materialization_metadata(manifest, folder, assessment, reused=False, store_uri="x", links=LINKS))
    assert page[:5] == ["verdict", "headline", "loss_curve", "samples", "all_samples"]
    assert page[-3:] == ["data_version", "identity", "code_fingerprint"]


def test_the_page_says_how_its_code_stands(manifest: Manifest, folder: Path, assessment: Assessment) -> None:
    lines = ["base_model v1 was adopted on 2026-11-29 by ada: moved", "and again"]
    page = materialization_metadata(manifest, folder, assessment, reused=True, store_uri="x", code=lines)
    assert list(page)[:2] == ["verdict", "code"]
    assert page["code"] == dg.MetadataValue.md("- base_model v1 was adopted on 2026-11-29 by ada: moved\n- and again")


def test_a_refused_version_says_so_first_and_what_stays_promoted(
    manifest: Manifest, folder: Path, assessment: Assessment
) -> None:
    page = materialization_metadata(manifest, folder, assessment, reused=False, store_uri="x")
    verdict = str(page["verdict"].value)
    assert verdict.startswith("**Refused by 1 of 2 gates.** `v0` stays promoted.")
    assert "choice_accuracy_dcpmi is missing" in verdict
    assert "loss_drop" not in verdict


def test_a_certified_version_says_whether_it_is_promoted(
    manifest: Manifest, folder: Path, assessment: Assessment, certificate: Certificate
) -> None:
    good = certificate.model_copy(update={"verdicts": certificate.verdicts[:1]})
    for promoted, shown in (
        ("v1", "**Promoted.** It passes all 1 gates."),
        ("v0", "**Passes all 1 gates**, which promote it."),
    ):
        page = materialization_metadata(
            manifest, folder, Assessment(good, assessment.evaluation, promoted), reused=True, store_uri="x"
        )
        assert page["verdict"].value == shown
    unfounded = good.model_copy(update={"unfounded": ("packed_shards v7",)})
    page = materialization_metadata(manifest, folder, Assessment(unfounded), reused=True, store_uri="x")
    assert str(page["verdict"].value).startswith("**Refused**: it was made from packed_shards v7")


def test_a_version_that_could_not_be_measured_says_why(manifest: Manifest, folder: Path) -> None:
    page = materialization_metadata(manifest, folder, UNJUDGED, reused=False, store_uri="x")
    assert page["verdict"].value == "**Not measured.** Nothing is promoted. the evaluation ran out of memory"
    assert "headline" not in page, "a model's headline is measured and never the builder's own"


def test_loss_and_samples_are_short_enough_to_be_shown_inline(
    manifest: Manifest, folder: Path, assessment: Assessment
) -> None:
    write_losses(folder, 1500)
    page = materialization_metadata(manifest, folder, assessment, reused=False, store_uri="x")
    loss, samples = str(page["loss_curve"].value), str(page["samples"].value)
    assert len(loss) < SHOWN_INLINE and loss.endswith("1500 → 1")
    assert 500 < len(samples) < SHOWN_INLINE
    assert samples.startswith("**What is 0?**  \n\\*A\\* number")


@pytest.mark.parametrize("count", [2, 48, 49, 100_000])
def test_a_sparkline_keeps_the_first_and_the_last_loss(folder: Path, count: int) -> None:
    write_losses(folder, count)
    line = loss_sparkline(folder / "report")
    assert len(line) < SHOWN_INLINE
    assert "M0%204L" in line and "L340%2092'" in line, "it falls from the upper left to the lower right"


def test_without_losses_there_is_no_sparkline(folder: Path) -> None:
    assert loss_sparkline(folder / "report") == ""
    write_losses(folder, 1)
    assert loss_sparkline(folder / "report") == ""


def write_losses(folder: Path, count: int) -> None:
    rows = [json.dumps({"step": step, "loss": count - step}) + "\n" for step in range(count)]
    (folder / "report" / "training.jsonl").write_text("".join(rows) + '{"step": 9, "grad_norm": 1.0}\n')


def test_an_event_with_the_page_survives_dagsters_event_log(manifest: Manifest, folder: Path) -> None:
    page = materialization_metadata(manifest, folder, UNJUDGED, reused=True, store_uri="s3://bucket/v1")

    @dg.asset
    def base_model() -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult(metadata=page)

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([base_model], instance=instance)
        event = instance.get_latest_materialization_event(dg.AssetKey("base_model"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata == page


def test_samples_become_a_typed_table_with_short_cells(manifest: Manifest, folder: Path) -> None:
    samples = materialization_metadata(manifest, folder, UNJUDGED, reused=False, store_uri="x")["all_samples"]
    assert isinstance(samples, dg.TableMetadataValue)
    assert {column.name: column.type for column in samples.schema.columns} == {
        "prompt": "string",
        "tokens": "int",
        "score": "float",
        "stopped": "bool",
        "extra": "string",
    }
    assert len(str(samples.records[0].data["prompt"])) == 300
    assert samples.records[1].data == {"prompt": "q", "tokens": 4, "score": 0.5, "stopped": None, "extra": '["x"]'}


def test_pictures_are_inline_until_they_are_too_large(manifest: Manifest, folder: Path) -> None:
    (folder / "report" / "huge.png").write_bytes(PNG + b"0" * MAX_PICTURE)
    for index in range(6):
        (folder / "report" / f"z{index}.png").write_bytes(PNG + b"0" * (MAX_PICTURE - 2000))
    page = materialization_metadata(manifest, folder, UNJUDGED, reused=False, store_uri="x")
    inline = page["picture_loss"]
    assert isinstance(inline, dg.MarkdownMetadataValue)
    assert base64.b64decode(str(inline.md_str).split("base64,")[1].rstrip(")")) == PNG
    assert page["picture_huge"] == dg.MetadataValue.path(str(folder / "report" / "huge.png"))
    kinds = [type(page[f"picture_z{index}"]) for index in range(6)]
    assert kinds == [dg.MarkdownMetadataValue] * 4 + [dg.PathMetadataValue] * 2


def test_a_version_without_a_report_still_has_a_page(manifest: Manifest, tmp_path: Path) -> None:
    bare = manifest.model_copy(update={"headline": None, "inputs": {}, "metrics": {}})
    page = materialization_metadata(bare, tmp_path, UNJUDGED, reused=False, store_uri="x")
    assert page["data_version"].value == "d" * 64
    assert not {"card", "samples", "all_samples", "headline", "inputs"} & set(page)


def test_the_gate_table_says_what_was_refused_and_why(certificate: Certificate) -> None:
    rows = [record.data for record in verdict_table(certificate).records]
    assert rows[0] == {
        "metric": "loss_drop",
        "value": "2",
        "interval": "1.5 to 2.5",
        "must be": ">= 1",
        "champion": "2.25",
        "verdict": "passed",
    }
    assert (rows[1]["verdict"], rows[1]["value"], rows[1]["champion"]) == ("FAILED", "", "")
    refusals = check_metadata(certificate.verdicts[0], certificate)["refusals"]
    assert refusals.value == "- choice_accuracy_dcpmi is missing from the evaluation report"


def test_a_gate_shows_its_value_and_the_first_one_the_evaluation(
    certificate: Certificate, manifest: Manifest, folder: Path
) -> None:
    first, second = (
        check_metadata(verdict, certificate, meaning="a share", evaluation=manifest, folder=folder, links=LINKS)
        for verdict in certificate.verdicts
    )
    assert first["value"].value == 2.0
    assert "value" not in second
    assert second["meaning"].value == "a share"
    assert {"picture_loss", "all_samples", "card"} <= set(first)
    assert not {"picture_loss", "all_samples", "card"} & set(second)
    assert (second["suite_digest"].value, second["evaluation_version"].value) == ("s", "v2")


def test_a_gate_shows_how_sure_it_is_and_the_champion(certificate: Certificate) -> None:
    first, second = (
        check_metadata(verdict, certificate, report="/store/gate_reports/v1.html") for verdict in certificate.verdicts
    )
    shown = {
        name: first[name].value
        for name in (
            "interval_low",
            "interval_high",
            "confidence",
            "method",
            "items",
            "champion",
            "champion_value",
            "worse_than_champion_by",
            "worse_than_champion_at_most",
            "champion_margin",
        )
    }
    assert list(shown.values()) == [1.5, 2.5, 0.95, "bootstrap", 40, "v0", 2.25, 0.25, 0.375, 0.5]
    assert not set(shown) & set(second)
    assert first["gate_report"] == dg.MetadataValue.path("/store/gate_reports/v1.html")


def test_a_gates_plot_is_a_small_picture_that_dagster_keeps(certificate: Certificate) -> None:
    first, second = (check_metadata(verdict, certificate) for verdict in certificate.verdicts)
    assert "plot" not in second
    plot = str(first["plot"].value)
    assert len(plot) < 2500
    data = base64.b64decode(plot.removeprefix("![loss_drop](data:image/svg+xml;base64,").removesuffix(")"))
    assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_waiver_comes_first(certificate: Certificate) -> None:
    waived = certificate.model_copy(
        update={"waivers": (WAIVER,), "inherited": (WAIVER.model_copy(update={"version": "v9", "gate": "loss_drop"}),)}
    )
    verdict = waived.verdicts[1]
    assert check_description(verdict, waived).startswith(
        "waived until 2026-12-31 by ada (known): choice_accuracy_dcpmi is m"
    )
    assert check_description(verdict, certificate) == verdict.reason
    shown = str(check_metadata(verdict, waived)["waivers"].value)
    assert "choice_accuracy_dcpmi of base_model v1 until 2026-12-31" in shown and "loss_drop of base_model v9" in shown
    assert "waivers" not in check_metadata(verdict, certificate)
    assert verdict_table(waived).records[1].data["verdict"] == "waived"


class _Receiver(BaseHTTPRequestHandler):
    received: list[bytes]
    status = 200

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[_Receiver]]]:
    handler = type("Handler", (_Receiver,), {"received": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/services/TOKEN?key=SECRET", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_webhook_posts_json(receiver: tuple[str, type[_Receiver]]) -> None:
    url, handler = receiver
    assert webhook.post(url, {"text": "gate refused"})
    assert json.loads(handler.received[0]) == {"text": "gate refused"}


@pytest.mark.parametrize("refuse", [True, False])
def test_webhook_that_fails_is_logged_without_its_secret(
    receiver: tuple[str, type[_Receiver]], refuse: bool, caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = receiver
    handler.status = 500
    if not refuse:
        url = "http://user:SECRET@127.0.0.1:9/TOKEN"
    with caplog.at_level(logging.WARNING, logger="gatehouse.webhook"):
        assert not webhook.post(url, {})
        assert not webhook.post("file:///etc/TOKEN", {})
    assert "127.0.0.1" in caplog.text
    assert "TOKEN" not in caplog.text
    assert "SECRET" not in caplog.text
