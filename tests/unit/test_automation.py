"""The schedule and the sensors: what starts a run, and what is posted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.build import build_definitions
from tests.webhooks import receiver

RECIPE = """
extends: smoke
name: watched
nightly: {hour: 4, minute: 30, timezone: Europe/Berlin}
sources:
  - {name: notes, path: %s}
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    return folder


@pytest.fixture
def definitions(tmp_path: Path, notes: Path) -> dg.Definitions:
    recipe = tmp_path / "watched.yaml"
    recipe.write_text(RECIPE % notes)
    return build_definitions(str(recipe))


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    with receiver() as (url, posted):
        monkeypatch.setenv("GATEHOUSE_WEBHOOK_URL", url)
        yield posted


def test_the_schedule_runs_at_the_recipes_hour_and_is_off(definitions: dg.Definitions) -> None:
    schedule = definitions.resolve_schedule_def("watched_nightly")
    assert schedule.cron_schedule == "30 4 * * *"
    assert schedule.execution_timezone == "Europe/Berlin"
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    job = definitions.resolve_job_def("watched_everything")
    assert len(job.asset_layer.executable_asset_keys) == 12


def test_a_changed_source_starts_the_chain_once(definitions: dg.Definitions, notes: Path) -> None:
    sensor = definitions.resolve_sensor_def("watched_sources_changed")

    def look(cursor: str | None) -> Any:
        with dg.build_sensor_context(cursor=cursor, definitions=definitions) as context:
            return sensor.evaluate_tick(context)

    first = look(None)
    assert first.run_requests == []
    assert look(first.cursor).run_requests == []
    (notes / "b.txt").write_text("two")
    changed = look(first.cursor)
    assert len(changed.run_requests) == 1
    assert look(changed.cursor).run_requests == []


def test_a_missing_source_is_said_and_starts_nothing(definitions: dg.Definitions, notes: Path) -> None:
    (notes / "a.txt").unlink()
    notes.rmdir()
    sensor = definitions.resolve_sensor_def("watched_sources_changed")
    with dg.build_sensor_context(cursor="x", definitions=definitions) as context:
        tick = sensor.evaluate_tick(context)
    assert tick.run_requests == []
    assert "notes" in (tick.skip_message or "")


def test_a_refusal_is_posted_once(definitions: dg.Definitions, webhook: list[dict[str, Any]]) -> None:
    sensor = definitions.resolve_sensor_def("watched_gate_refused")

    def look(cursor: str | None) -> Any:
        with dg.build_sensor_context(instance=instance, cursor=cursor, definitions=definitions) as context:
            return sensor.evaluate_tick(context)

    with dg.DagsterInstance.ephemeral() as instance:
        cursor = look(None).cursor
        for key, passed in ((["watched", "corpus"], False), (["watched", "corpus"], True), (["other"], False)):
            instance.report_runless_asset_event(dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(key), check_name="bytes", passed=passed, metadata={}, description="bytes 1"))
        after = look(cursor)
        assert [(post["event"], post["asset"], post["gate"]) for post in webhook] == [
            ("gate_refused", "watched/corpus", "bytes")]
        look(after.cursor)
        assert len(webhook) == 1


def test_without_a_webhook_nothing_is_posted(definitions: dg.Definitions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEHOUSE_WEBHOOK_URL", raising=False)
    sensor = definitions.resolve_sensor_def("watched_gate_refused")
    with dg.DagsterInstance.ephemeral() as instance, dg.build_sensor_context(
            instance=instance, cursor="0", definitions=definitions) as context:
        assert "GATEHOUSE_WEBHOOK_URL is not set" in (sensor.evaluate_tick(context).skip_message or "")
