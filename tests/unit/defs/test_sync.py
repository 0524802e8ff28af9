"""MLflow and Dagster say what the store says, also after a crash in between and after an outage."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.building import decisions
from pipeline.defs.sync import reconcile
from pipeline.jobs.locks import building
from pipeline.tracking.promotions import agree_with_mlflow
from pipeline.tracking.tracker import Tracker
from tests.unit.worlds import World, new_world, silent
from training.store.store import utc_today

KEY = dg.AssetKey(["unit", "base_model"])
GATES = "gates.base_model=[{{metric: loss_drop, must_be: '>=', threshold: {}}}]"
GATE = dg.AssetCheckKey(KEY, "loss_drop")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        yield made


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two versions of base_model, each promoted in its turn and known to MLflow."""
    world = new_world(tmp_path_factory.mktemp("models"))
    world.publish_upstream()
    tracked = replace(world, tracking=f"sqlite:///{world.folder}/mlflow/mlflow.db", overrides=[GATES.format(1)])
    for value in (2.0, 3.0):
        made = tracked.publish("base_model", {"loss_drop": value}, current=value == 3.0)
        assert tracked.builder.examine(made, silent, is_past_version=False).promoted
        agree_with_mlflow("base_model", tracked.store, tracked.builder.tracker)
    return tracked


@pytest.fixture
def models(template: World, tmp_path: Path) -> World:
    """A copy of it; the newer version is promoted."""
    shutil.copytree(template.folder, tmp_path / "models")
    return replace(template, folder=tmp_path / "models", tracking=f"sqlite:///{tmp_path}/models/mlflow/mlflow.db")


def agree(world: World, instance: dg.DagsterInstance, tracker: Tracker | None = None) -> list[str]:
    return reconcile(
        world.store,
        tracker or world.builder.tracker,
        instance,
        world.builder.loaded.graph,
        ["unit"],
        world.folder / "work",
    )


def champion(world: World) -> str:
    """The version that MLflow's alias points to."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(world.tracking, world.tracking)
    try:
        version = client.get_model_version_by_alias("unit.base_model", "champion")
    except MlflowException:
        return ""
    assert version.tags["verdict"] == "promoted"
    return str(version.tags["version"])


def run_tags(world: World, version: str) -> dict[str, str]:
    from mlflow import MlflowClient

    run = MlflowClient(world.tracking, world.tracking).get_run(
        world.store.links("base_model", version)["mlflow_run_id"]
    )
    return dict(run.data.tags)


def shown(instance: dg.DagsterInstance) -> Any:
    event = instance.get_latest_materialization_event(KEY)
    assert event is not None and event.asset_materialization is not None
    return event.asset_materialization


def verdict_record(instance: dg.DagsterInstance) -> Any:
    return instance.event_log_storage.get_latest_asset_check_execution_by_key([GATE])[GATE]


def verdict(instance: dg.DagsterInstance) -> Any:
    record = verdict_record(instance)
    assert record.event is not None and record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


def assert_agreement(world: World, instance: dg.DagsterInstance, version: str) -> None:
    assert world.promoted("base_model") == version
    assert champion(world) == version
    materialization = shown(instance)
    assert materialization.metadata["version"].value == version
    assert materialization.tags["dagster/data_version"] == world.store.manifest("base_model", version).digest
    latest = instance.fetch_materializations(KEY, limit=1).records[0]
    assert verdict(instance).passed
    assert verdict(instance).target_materialization_data.storage_id == latest.storage_id
    never = world.folder / "never" / "mlflow.db"
    assert agree(world, instance, Tracker(f"sqlite:///{never}", "unit")) == [], "nothing differs"
    assert not never.parent.exists(), "MLflow is not opened when nothing differs"


def test_a_crash_after_the_pointer_moved_is_repaired(models: World, instance: dg.DagsterInstance) -> None:
    old, new = models.store.versions("base_model")
    agree(models, instance)
    assert_agreement(models, instance, new)
    decisions.rollback(models.builder, "base_model", "worse", "ada", silent)
    assert champion(models) == new, "the command died before it told anybody"
    assert agree(models, instance) == ["base_model"]
    assert_agreement(models, instance, old)
    assert run_tags(models, new)["verdict"] != "promoted"


@pytest.mark.parametrize("done", ["alias", "mlflow"])
def test_a_crash_between_mlflow_and_dagster_is_repaired(models: World, instance: dg.DagsterInstance, done: str) -> None:
    old, _ = models.store.versions("base_model")
    agree(models, instance)
    decisions.rollback(models.builder, "base_model", "worse", "ada", silent)
    if done == "mlflow":
        agree_with_mlflow("base_model", models.store, models.builder.tracker)
    else:
        certificate = models.store.certificate("base_model", old)
        assert certificate is not None
        models.builder.tracker.judged(
            models.store.manifest("base_model", old),
            models.store.links("base_model", old),
            certificate,
            None,
            promoted=True,
            store=models.store,
        )
    assert champion(models) == old
    assert agree(models, instance) == ["base_model"]
    assert_agreement(models, instance, old)


def test_mlflow_that_is_down_is_told_next_time(models: World, instance: dg.DagsterInstance) -> None:
    old, new = models.store.versions("base_model")
    agree(models, instance)
    decisions.rollback(models.builder, "base_model", "worse", "ada", silent)
    down = Tracker("http://127.0.0.1:1", "unit")
    assert agree(models, instance, down) == ["base_model"], "Dagster is told all the same"
    assert shown(instance).metadata["version"].value == old and champion(models) == new
    assert agree(models, instance) == ["base_model"]
    assert_agreement(models, instance, old)


def test_an_outage_that_ends_after_going_forth_and_back(models: World, instance: dg.DagsterInstance) -> None:
    old, new = models.store.versions("base_model")
    agree(models, instance)
    decisions.rollback(models.builder, "base_model", "worse", "ada", silent)
    tracker = models.builder.tracker  # goes down between the two halves: the old champion is off, the new one not on
    links = models.store.links("base_model", new)
    certificate = models.store.certificate("base_model", new)
    assert certificate is not None
    tracker.judged(
        models.store.manifest("base_model", new), links, certificate, None, promoted=False, store=models.store
    )
    models.store.write_links("base_model", new, {"tracked_judgement": f"{certificate.digest}:False"})
    decisions.promote(models.builder, "base_model", new, "ada", silent)
    assert champion(models) == ""
    agree(models, instance)
    assert_agreement(models, instance, new)
    assert old != new


def test_a_waiver_and_its_end_are_shown_everywhere(models: World, instance: dg.DagsterInstance) -> None:
    strict = replace(models, overrides=[GATES.format(9)])
    _, new = strict.store.versions("base_model")
    assert not strict.judge("base_model").promoted
    agree(strict, instance)
    assert champion(strict) == ""
    decisions.waive(strict.builder, "base_model", "loss_drop", "a demo", utc_today(), "ada", silent)
    agree(strict, instance)
    assert_agreement(strict, instance, new)
    waived = run_tags(strict, new)["waivers"]
    assert waived == f"loss_drop of base_model {new} until {utc_today()} by ada: a demo"
    pointer = strict.store.promotion("base_model")
    assert pointer is not None and run_tags(strict, new)["certificate"] == pointer.certificate_digest
    decisions.withdraw_waiver(strict.builder, "base_model", "loss_drop", silent)
    assert agree(strict, instance) == ["base_model"]
    assert champion(strict) == "" and not verdict(instance).passed
    assert "waivers" not in run_tags(strict, new)


def test_a_refused_newer_version_stays_in_sight(models: World, instance: dg.DagsterInstance) -> None:
    _, promoted = models.store.versions("base_model")
    agree(models, instance)
    refused = models.publish("base_model", {"loss_drop": 0.0})
    models.judge("base_model")
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata={"version": refused.version}))
    agree(models, instance)
    assert shown(instance).metadata["version"].value == refused.version
    assert not verdict(instance).passed
    assert models.promoted("base_model") == promoted == champion(models)


def planned(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A run that has begun, and has still to make base_model and to judge it."""

    @dg.asset(name="base_model", key_prefix="unit")
    def model() -> None:
        raise NotImplementedError

    @dg.asset_check(asset=model, name="loss_drop")
    def loss_drop() -> dg.AssetCheckResult:
        raise NotImplementedError

    job = dg.Definitions(assets=[model], asset_checks=[loss_drop]).resolve_implicit_global_asset_job_def()
    return instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)


def test_what_an_unfinished_run_has_still_to_judge_is_left_to_it(models: World, instance: dg.DagsterInstance) -> None:
    agree(models, instance)
    decisions.rollback(models.builder, "base_model", "worse", "ada", silent)
    run = planned(instance)
    before = verdict_record(instance)
    assert before.status.name == "PLANNED"
    assert agree(models, instance) == [] and verdict_record(instance).id == before.id
    instance.report_run_failed(run)
    assert agree(models, instance) == ["base_model"]
    assert_agreement(models, instance, models.promoted("base_model"))


@pytest.mark.parametrize("built", ["base_model", "base_model.evaluation"])
def test_what_is_being_built_or_measured_is_left_alone(models: World, instance: dg.DagsterInstance, built: str) -> None:
    with building(models.folder / "work", "unit", built, "a run"):
        assert "base_model" not in agree(models, instance)
        assert instance.get_latest_materialization_event(KEY) is None
    assert agree(models, instance) == ["base_model"]


def test_verdicts_of_an_earlier_materialization_are_not_evaluated_in_dagster(
    models: World, instance: dg.DagsterInstance
) -> None:
    """The page shows the checks of the newest materialization alone, whether they pass or not."""
    agree(models, instance)
    version = models.promoted("base_model")

    @dg.op
    def materialize(context: dg.OpExecutionContext) -> None:
        context.log_event(dg.AssetMaterialization(KEY, metadata={"version": version}, tags=shown(instance).tags))

    @dg.job
    def without_checks() -> None:
        materialize()

    assert without_checks.execute_in_process(instance=instance).success
    assert agree(models, instance) == ["base_model"]
    assert_agreement(models, instance, version)
