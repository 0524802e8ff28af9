"""Dagster and MLflow on a real PostgreSQL: the same chain, and a server that goes away in the middle of a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from pipeline.paths import variables
from pipeline.recipes.loader import load_recipe
from pipeline.tracking.metrics_follower import points_of
from tests.conftest import ROOT, environment
from tests.e2e.conftest import Chain
from tests.integration.postgresql_server import PASSWORD, PostgreSQL, postgresql
from tests.patience import Patience, finish
from training.store.store import Store

pytestmark = pytest.mark.postgresql


@dataclass(frozen=True)
class Place:
    """A home whose Dagster and MLflow are on PostgreSQL."""

    home: Path
    server: PostgreSQL

    @property
    def store(self) -> Store:
        return Store(str(self.home / "store"), "smoke")

    @property
    def env(self) -> dict[str, str]:
        return environment(
            self.home,
            GATEHOUSE_RECIPE="smoke",
            DAGSTER_HOME=str(ROOT / "postgresql"),
            GATEHOUSE_POSTGRES_URL=self.server.url("dagster"),
            MLFLOW_TRACKING_URI=self.server.url("mlflow"),
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        with (self.home / "output.log").open("a") as output:
            return subprocess.Popen(
                ["bash", "-c", '. ./env.sh && exec "$@"', "-", *arguments],
                cwd=ROOT,
                env=self.env,
                text=True,
                stdout=output,
                stderr=output,
            )

    def run(self, *arguments: str) -> int:
        return finish(self.start(*arguments), 900)

    @property
    def output(self) -> str:
        return (self.home / "output.log").read_text()

    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        address = self.server.url("mlflow").replace("postgresql:", "postgresql+psycopg2:")
        return MlflowClient(address, address)

    def instance(self, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)
        for name, value in variables().items():
            monkeypatch.setenv(name, value)
        return dg.DagsterInstance.get()

    def events(self, asset: str) -> Path:
        """The events of an asset's newest attempt."""
        return max((self.home / "work" / "smoke" / asset).glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as made:
        yield made


def new_place(server: PostgreSQL, home: Path) -> Place:
    """Empty databases, which Dagster and MLflow fill with tables."""
    import psycopg2

    with closing(psycopg2.connect(server.url("postgres"))) as connection:
        connection.autocommit = True
        for database in ("dagster", "mlflow"):
            connection.cursor().execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
    for database in ("dagster", "mlflow"):
        server.create(database)
    (home / "dagster").mkdir(parents=True)
    return Place(home, server)


@pytest.fixture
def place(server: PostgreSQL, kept_chain: Chain, tmp_path: Path) -> Place:
    """What the chain has built on SQLite, moved to empty databases."""
    home = tmp_path / "pg"
    for folder in ("store", "work"):
        shutil.copytree(kept_chain.home / folder, home / folder, ignore=shutil.ignore_patterns("lock", "*.lock"))
    return new_place(server, home)


def assert_all_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every asset is promoted, and Dagster and MLflow show it, with its gates, lineage and metrics, once."""
    client, store = place.mlflow(), place.store
    with place.instance(monkeypatch) as instance:
        for asset, node in load_recipe("smoke").graph.items():
            pointer = store.promotion(asset)
            assert pointer is not None, asset
            manifest, certificate = store.manifest(asset, pointer.version), store.certificate(asset, pointer.version)
            key = dg.AssetKey(["smoke", asset])
            event = instance.get_latest_materialization_event(key)
            assert event is not None and event.asset_materialization is not None, asset
            assert event.asset_materialization.tags is not None
            assert event.asset_materialization.tags["dagster/data_version"] == manifest.digest
            assert certificate is not None
            keys = [dg.AssetCheckKey(key, verdict.name) for verdict in certificate.verdicts]
            checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
            assert {check.name for check, record in checks.items() if record.status.value == "SUCCEEDED"} == {
                verdict.name for verdict in certificate.verdicts
            }
            run = client.get_run(store.links(asset, pointer.version)["mlflow_run_id"])
            assert run.info.status == "FINISHED" and run.data.tags["verdict"] == "promoted"
            assert {used.dataset.name for used in run.inputs.dataset_inputs} == set(node.inputs)
    for asset in ("base_model", "sft_model", "dpo_model", "lora_model"):
        pointer = store.promotion(asset)
        assert pointer is not None
        champion = client.get_model_version_by_alias(f"smoke.{asset}", "champion")
        assert champion.tags["version"] == pointer.version
        assert_metrics(client, champion.run_id, place.events(asset))


def assert_metrics(client: Any, run_id: str, events: Path) -> None:
    """A run holds the points of its attempt, each once; a forced build's attempt holds an older build's too."""
    wanted = {tuple(point) for line in events.read_text().splitlines() for point in points_of(json.loads(line))}
    held = Counter(
        (point.key, point.value, point.timestamp, point.step)
        for key in {point[0] for point in wanted}
        for run in (run_id, *others(client, run_id))
        for point in client.get_metric_history(run, key)
    )
    assert held == Counter(wanted) and len(client.get_metric_history(run_id, "curves/loss")) >= 2


def others(client: Any, run_id: str) -> list[str]:
    run = client.get_run(run_id)
    identity = run.data.tags["identity"]
    return [
        one.info.run_id
        for one in client.search_runs([run.info.experiment_id], f"tags.`identity` = '{identity}'")
        if one.info.run_id != run_id
    ]


def assert_no_password(place: Place) -> None:
    """The password is in nothing that was printed, nor in the home, nor in a database."""
    for path in place.home.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path
    for database in ("dagster", "mlflow"):
        dump = subprocess.run(["pg_dump", place.server.url(database)], capture_output=True, check=True).stdout
        assert len(dump) > 10_000 and PASSWORD.encode() not in dump, database
    assert place.run("dagster", "instance", "info") == 0
    assert PASSWORD not in place.output


def test_what_was_built_on_sqlite_goes_on_on_postgresql(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow gets all of it, Dagster judges it again, and a stage is trained while the server goes down and comes."""
    assert place.run("gatehouse", "sync", "-r", "smoke") == 0, place.output
    assert place.run("dagster", "asset", "materialize", "--select", "*") == 0, place.output[-5000:]
    before = place.store.versions("lora_model")
    run = place.start("gatehouse", "run", "--select", "lora_model", "--force")
    interrupt(place, run, "lora_model", [0.0, 4.0])
    assert finish(run, 300) == 0, place.output[-5000:]
    assert len(place.store.versions("lora_model")) == len(before) + 1
    assert place.run("gatehouse", "sync", "-r", "smoke") == 0, place.output[-5000:]
    assert_all_there(place, monkeypatch)
    assert_no_password(place)


@pytest.mark.slow
def test_the_whole_chain_on_postgresql_with_restarts(
    server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_place(server, tmp_path / "pg")
    run = place.start("gatehouse", "run")
    for asset in ("raw_corpus", "base_model", "sft_model", "lora_model"):
        interrupt(place, run, asset, [0.0, 6.0])
    assert finish(run, 900) == 0, place.output[-5000:]
    assert place.run("gatehouse", "sync", "-r", "smoke") == 0, place.output[-5000:]
    assert_all_there(place, monkeypatch)
    assert_no_password(place)


@pytest.mark.slow
def test_a_long_outage_ends_the_run_at_most_and_the_next_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.run("gatehouse", "sync", "-r", "smoke") == 0, place.output
    assert place.run("gatehouse", "run") == 0, place.output[-5000:]
    run = place.start("gatehouse", "run", "--select", "lora_model", "--force")
    interrupt(place, run, "lora_model", [60.0])
    code = finish(run, 300)
    assert code in (0, 1), place.output[-5000:]
    assert place.run("gatehouse", "run") == 0, place.output[-5000:]
    with place.instance(monkeypatch) as instance:
        assert not instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    assert place.run("gatehouse", "sync", "-r", "smoke") == 0, place.output[-5000:]
    assert_all_there(place, monkeypatch)


def interrupt(place: Place, run: subprocess.Popen[str], asset: str, outages: list[float]) -> None:
    """Stop the server while an asset's job works, once for each outage; each lasts so many seconds."""
    attempts = place.home / "work" / "smoke" / asset
    seen = {path: path.stat().st_size for path in attempts.glob("*/events.jsonl")}
    patience = Patience(300)
    while not any(path.stat().st_size > seen.get(path, 0) for path in attempts.glob("*/events.jsonl")):
        assert run.poll() is None and not patience.is_over(), place.output[-5000:]
        time.sleep(0.1)
    for seconds in outages:
        place.server.stop()
        time.sleep(seconds)
        place.server.start()
        time.sleep(2)


def test_the_two_instances_differ_in_their_storage_alone() -> None:
    sqlite, postgres = (
        yaml.safe_load((ROOT / name).read_text()) for name in ("dagster.yaml", "postgresql/dagster.yaml")
    )
    assert sqlite.pop("storage").keys() == {"sqlite"}
    assert postgres.pop("storage") == {"postgres": {"postgres_url": {"env": "GATEHOUSE_POSTGRES_URL"}}}
    assert sqlite == postgres
