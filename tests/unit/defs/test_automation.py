"""The schedule and the sensors: what starts a run, and what is posted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.definitions import build_definitions
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


class Looks:
    """Looks of the sensor of the sources, each with the cursor that the one before has left."""

    def __init__(self, definitions: dg.Definitions) -> None:
        self._definitions = definitions
        self._sensor = definitions.resolve_sensor_def("watched_sources_changed")
        self.cursor: str | None = None

    def __call__(self) -> list[str | None]:
        """The keys of the runs that one look asks for."""
        with dg.build_sensor_context(cursor=self.cursor, definitions=self._definitions) as context:
            tick = self._sensor.evaluate_tick(context)
        self.cursor = tick.cursor
        return [request.run_key for request in tick.run_requests or []]


def test_a_changed_source_starts_the_chain_once(definitions: dg.Definitions, notes: Path) -> None:
    look = Looks(definitions)
    assert look() == [] and look() == []
    (notes / "b.txt").write_text("two")
    assert look() == []
    assert len(look()) == 1
    assert look() == [] and look() == []


def test_a_file_that_is_still_being_copied_starts_nothing(definitions: dg.Definitions, notes: Path) -> None:
    look = Looks(definitions)
    look()
    for size in range(1, 4):
        (notes / "big.jsonl").write_text('{"text": ' * size)
        assert look() == []
    assert len(look()) == 1
    assert look() == []


def test_files_that_come_and_go_start_the_chain_each_time(
    definitions: dg.Definitions, notes: Path, tmp_path: Path
) -> None:
    (notes / "b.txt").write_text("two")
    look, keys = Looks(definitions), list[str | None]()
    look()
    for move in range(4):
        (notes / "b.txt").rename(tmp_path / "b.txt") if move % 2 == 0 else (tmp_path / "b.txt").rename(notes / "b.txt")
        keys += look() + look()
    assert len(keys) == len(set(keys)) == 4 and None not in keys


def test_a_change_that_is_taken_back_starts_nothing(definitions: dg.Definitions, notes: Path, tmp_path: Path) -> None:
    look = Looks(definitions)
    look()
    (notes / "b.txt").write_text("two")
    assert look() == []
    (notes / "b.txt").rename(tmp_path / "b.txt")
    assert look() == [] and look() == []
    (tmp_path / "b.txt").rename(notes / "b.txt")
    assert look() == [], "seen before, and gone in between"
    assert len(look()) == 1


def test_a_missing_source_is_said_and_starts_nothing(definitions: dg.Definitions, notes: Path) -> None:
    (notes / "a.txt").unlink()
    notes.rmdir()
    sensor = definitions.resolve_sensor_def("watched_sources_changed")
    with dg.build_sensor_context(cursor="x", definitions=definitions) as context:
        tick = sensor.evaluate_tick(context)
    assert tick.run_requests == []
    assert "notes" in (tick.skip_message or "")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """On SQLite, as out of the box."""
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        yield made


class Refusals:
    """Looks of the sensor that posts refusals."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self._definitions, self._instance = definitions, instance
        self._sensor = definitions.resolve_sensor_def("watched_gate_refused")
        self.cursor: str | None = None

    def __call__(self) -> str:
        """Why one look starts no run."""
        with dg.build_sensor_context(
            instance=self._instance, cursor=self.cursor, definitions=self._definitions
        ) as context:
            tick = self._sensor.evaluate_tick(context)
        self.cursor = tick.cursor
        return tick.skip_message or ""


def judge(instance: dg.DagsterInstance, *key: str, passed: bool) -> None:
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(key), check_name="bytes", passed=passed, metadata={}, description="bytes 1"
        )
    )


def judging_run(instance: dg.DagsterInstance, passed: bool) -> dg.ExecuteInProcessResult:
    """A run of Dagster's that judges corpus; others look on while it does."""

    @dg.asset(name="corpus", key_prefix="watched")
    def corpus() -> None:
        """Has no work."""

    @dg.asset_check(asset=corpus, name="bytes", blocking=True)
    def bytes_() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=passed, description="bytes 2")

    job = dg.Definitions(assets=[corpus], asset_checks=[bytes_]).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, raise_on_error=False)


def test_a_refusal_is_posted_once(
    definitions: dg.Definitions, instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    judge(instance, "watched", "corpus", passed=False)
    look = Refusals(definitions, instance)
    look()
    assert webhook == [], "what was refused before the first look is not news"
    judge(instance, "watched", "corpus", passed=False)
    judge(instance, "watched", "corpus", passed=True)
    judge(instance, "other", passed=False)
    look()
    assert [(post["event"], post["asset"], post["gate"]) for post in webhook] == [
        ("gate_refused", "watched/corpus", "bytes")
    ]
    look()
    assert len(webhook) == 1


def test_refusals_of_runs_are_posted_in_the_order_of_their_verdicts(
    definitions: dg.Definitions, instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    look = Refusals(definitions, instance)
    look()
    judging_run(instance, passed=True)
    assert look() == "0 refusals posted"
    judging_run(instance, passed=False)
    judge(instance, "watched", "raw_corpus", passed=False)
    judging_run(instance, passed=False)
    assert look() == "3 refusals posted"
    assert [post["reason"] for post in webhook] == ["bytes 2", "bytes 1", "bytes 2"]
    assert look() == "0 refusals posted"


def test_a_refusal_is_posted_though_a_later_run_plans_the_same_check(
    definitions: dg.Definitions, instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    look = Refusals(definitions, instance)
    look()
    judge(instance, "watched", "corpus", passed=False)
    instance.create_run_for_job(definitions.resolve_job_def("watched_everything"), status=dg.DagsterRunStatus.STARTED)
    look()
    assert len(webhook) == 1


def test_the_cursor_of_an_earlier_version_is_begun_anew(
    definitions: dg.Definitions, instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    look = Refusals(definitions, instance)
    look.cursor = "17"
    look()
    judge(instance, "watched", "corpus", passed=False)
    look()
    assert len(webhook) == 1


def test_without_a_webhook_nothing_is_posted_also_later(
    definitions: dg.Definitions, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATEHOUSE_WEBHOOK_URL", raising=False)
    look = Refusals(definitions, instance)
    assert "GATEHOUSE_WEBHOOK_URL is not set" in look()
    judge(instance, "watched", "corpus", passed=False)
    with receiver() as (url, posted):
        monkeypatch.setenv("GATEHOUSE_WEBHOOK_URL", url)
        look()
        look()
        assert posted == []
