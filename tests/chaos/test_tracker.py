"""MLflow down or slow at any moment: training does not notice, and MLflow has every point once after the next contact.

A real MLflow server stands behind a proxy that breaks connections; real jobs train through the builder.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.building.builder import Builder
from pipeline.building.planner import Plan
from pipeline.jobs.launcher import open_launcher
from pipeline.recipes.loader import load_recipe
from pipeline.tracking.delivery import deliver_pending, note_published
from pipeline.tracking.metrics_follower import points_of
from pipeline.tracking.outbox import has_undelivered, open_record, records_of
from pipeline.tracking.tracker import Tracker
from tests.chaos.mlflow_server import Proxy, mlflow_server
from tests.conftest import BIN, ROOT, environment
from tests.evidence import with_evidence
from tests.integration.postgresql_server import postgresql
from tests.integration.test_tracker import JOB, certificate_of, lineage_of, publish_version, write_events
from tests.integration.training_jobs import RECIPE, make_job, publish_data
from tests.patience import run_command
from tests.promises import Promise
from training.specs.artifacts import Manifest, Promotion
from training.specs.execution import Execution, Launcher
from training.specs.job import Job
from training.store.store import Store

OUTAGES = ("middle", "slow", "start", "end", "cut", "silent")
STEPS = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as port:
        yield port


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("data")
    store = Store(str(folder / "store"), RECIPE)
    publish_data(store, folder)
    return store


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    made = Proxy(server)
    yield made
    made.end()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.connection.DOWN_SECONDS", 1.0)


def client_of(server: int) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"http://127.0.0.1:{server}", f"http://127.0.0.1:{server}")


class Desk:
    """Trains base models of its own in an experiment of its own, without a recipe's plan."""

    def __init__(self, data: Store, folder: Path, url: str, steps: int = STEPS) -> None:
        self.work, self.url, self.steps = folder / "work", url, steps
        self.store = Store(data.root, RECIPE)
        self.experiment = folder.name

    @property
    def attempt(self) -> Path:
        [found] = (self.work / RECIPE / "base_model").glob("*/")
        return found

    def tracker(self) -> Tracker:
        return Tracker(self.url, self.experiment)

    def build(self, say: Callable[[list[dict[str, Any]]], None]) -> Manifest:
        job = Job.model_validate_json(
            make_job(
                self.store,
                "base_model",
                self.work / "planned",
                {
                    "steps": self.steps,
                    "log_every": 1,
                    "checkpoints": {"every_steps": self.steps // 4, "keep": 2},
                    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2, "beta2": _beta(self.experiment)},
                },
            ).read_bytes()
        )
        plan = Plan(
            "base_model", job.stage, RECIPE, job.identity, job.fingerprint, job.seed, job.section, job.inputs, {}, None
        )
        launcher = Launcher(grace_seconds=10, default=Execution(device="cpu", threads=1, micro_batch_tokens=256))
        builder = Builder(
            load_recipe("smoke"),
            self.store,
            open_launcher(launcher),
            self.tracker(),
            self.work,
            "test",
            {},
        )
        with pytest.MonkeyPatch.context() as patch:  # a plan over data that costs seconds, for gates are no matter here
            patch.setattr("pipeline.building.builder.plan_asset", lambda *_: plan)
            return builder.build("base_model", say)[0]


def _beta(name: str) -> float:
    """Makes identities differ, for all share one store."""
    return 0.9 + (sum(name.encode()) * 7919 % 90_000) / 1_000_000


def break_at(outage: str, proxy: Proxy) -> Callable[[list[dict[str, Any]]], None]:
    """A listener that breaks the proxy when the job is where the outage begins."""
    begins = {
        "middle": ("metrics", "closed"),
        "silent": ("metrics", "silent"),
        "slow": ("metrics", "slow"),
        "cut": ("metrics", "cut"),
        "start": ("", "closed"),
        "end": ("done", "closed"),
    }
    when, mode = begins[outage]
    if not when:
        proxy.mode = mode

    def listen(events: list[dict[str, Any]]) -> None:
        first = 1 if when == "metrics" else STEPS
        if proxy.mode == "open" and any(event.get("step", 0) >= first for event in events):
            proxy.mode = mode

    return listen


def held_points(client: Any, run_id: str, attempt: Path) -> None:
    """Assert that a run holds each point of an attempt's events, and each once."""
    wanted = Counter(
        (point.key, point.step, point.timestamp, point.value)
        for line in (attempt / "events.jsonl").read_text().splitlines()
        for point in points_of(json.loads(line))
    )
    assert len(wanted) > STEPS
    held = Counter(
        (key, point.step, point.timestamp, point.value)
        for key in {point[0] for point in wanted}
        for point in client.get_metric_history(run_id, key)
    )
    assert held == Counter(wanted.keys())


def runs_of(client: Any, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id]))


def assert_all_delivered(desk: Desk, server: int, manifest: Manifest) -> None:
    """After the next contact: one run, with everything, and the version in the registry."""
    result = deliver_pending(desk.work, desk.store, desk.tracker(), budget=120)
    assert not result.pending and not has_undelivered(desk.attempt)
    client = client_of(server)
    [run] = runs_of(client, desk.experiment)
    held_points(client, run.info.run_id, desk.attempt)
    assert run.info.status == "FINISHED" and run.data.tags["digest"] == manifest.digest
    links = desk.store.links("base_model", manifest.version)
    assert links["mlflow_run_id"] == run.info.run_id
    name = f"{desk.experiment}.base_model"
    [version] = client.search_model_versions(f"name = '{name}'")
    assert str(client.get_registered_model(name).aliases["candidate"]) == str(version.version)
    assert [made.model_id for made in run.outputs.model_outputs] == [links["mlflow_model_id"]]
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert {used.dataset.name for used in run.inputs.dataset_inputs} == {"packed_shards", "tokenizer"}
    assert not deliver_pending(desk.work, desk.store, desk.tracker()).delivered, "nothing is delivered twice"


@pytest.mark.promise(
    "MLflow down at the start, in the middle, at the end, or slow: training ends well, and every "
    "metric is there once after the next contact"
)
def test_outage(promise: Promise, data: Store, server: int, proxy: Proxy, tmp_path: Path) -> None:
    for trial in promise.trials(quick=2, full=18):
        with trial:
            outage = OUTAGES[trial.number % len(OUTAGES)]
            desk = Desk(data, tmp_path / f"outage-{trial.number}-{outage}", proxy.url)
            proxy.mode, proxy.delay = "open", trial.random.uniform(0.2, 3)
            manifest = desk.build(break_at(outage, proxy))
            assert manifest.version in desk.store.versions("base_model")
            if outage != "slow":
                assert has_undelivered(desk.attempt), "the outage was no outage"
            proxy.mode = "open"
            assert_all_delivered(desk, server, manifest)


BUILD = """
import sys
from pathlib import Path
from tests.chaos.test_tracker import Desk
from training.store.store import Store
def say(events):
    for event in events:
        if event["kind"] == "metrics":
            print(event["step"], flush=True)
root, folder, url = sys.argv[1:]
Desk(Store(root, "test"), Path(folder), url).build(say)
"""


@pytest.mark.promise(
    "Killed with its metrics half delivered, the next run goes on with the same MLflow run and misses "
    "and repeats no point"
)
def test_kill(promise: Promise, data: Store, server: int, proxy: Proxy, tmp_path: Path) -> None:
    for trial in promise.trials(quick=1, full=10):
        with trial:
            desk = Desk(data, tmp_path / f"kill-{trial.number}", proxy.url)
            proxy.mode = trial.random.choice(["open", "closed"])
            process = subprocess.Popen(
                [sys.executable, "-c", BUILD, data.root, str(tmp_path / desk.experiment), proxy.url],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(tmp_path / "home"),
            )
            last = trial.random.randrange(20, STEPS - 20)
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= last:
                    break
            process.send_signal(signal.SIGKILL)
            process.wait()
            [record] = records_of(desk.attempt)
            assert not record.is_delivered and record.build.outcome == ""
            proxy.mode = "open"
            if trial.number % 2:  # somebody syncs in between
                while not deliver_pending(desk.work, desk.store, desk.tracker(), budget=120).delivered:
                    time.sleep(0.2)  # the supervisor still ends the job
                [run] = runs_of(client_of(server), desk.experiment)
                assert run.info.status == "KILLED"
                held_points(client_of(server), run.info.run_id, desk.attempt)
            manifest = desk.build(lambda _: None)
            assert_all_delivered(desk, server, manifest)


@pytest.mark.postgresql
@pytest.mark.promise("A PostgreSQL that stops answering in the middle of a connection holds nobody up")
def test_a_silent_database(promise: Promise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.connection._CALL_SECONDS", 2.0)
    with postgresql() as database:
        database.create("mlflow")
        proxy = Proxy(database.port)
        address = database.url("mlflow").replace(f":{database.port}/", f":{proxy.url.rpartition(':')[2]}/")
        tracker = Tracker(address.replace("postgresql:", "postgresql+psycopg2:"), "tiny", patience=10)
        for trial in promise.trials(quick=1, full=3):
            with trial:
                run_id = tracker.begin(f"key {trial.number}", JOB)
                assert run_id is not None
                proxy.mode, started = "silent", time.monotonic()
                assert not tracker.finish(run_id) and time.monotonic() - started < 15
                proxy.mode = "open"
                time.sleep(1.5)
                assert tracker.finish(run_id)
        proxy.end()


@pytest.mark.slow
@pytest.mark.promise("A step takes as long with MLflow stuck as with MLflow there")
def test_step_time(
    promise: Promise, data: Store, proxy: Proxy, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    for trial in promise.trials(quick=1, full=3):
        with trial:
            desk = Desk(data, tmp_path / f"time-{trial.number}", proxy.url, steps=1500)
            switches: list[tuple[float, str]] = [(0.0, "open")]

            def switch(_events: list[dict[str, Any]], switches: list[tuple[float, str]] = switches) -> None:
                if time.time() - switches[-1][0] > 2:
                    proxy.mode = "silent" if proxy.mode == "open" else "open"
                    switches.append((time.time(), proxy.mode))

            desk.build(switch)
            times = [
                event["t"]
                for line in (desk.attempt / "events.jsonl").read_text().splitlines()
                if (event := json.loads(line))["kind"] == "metrics" and "loss" in event["values"]
            ]
            spent: dict[str, list[float]] = {"open": [], "silent": []}
            for before, now in pairwise(times):
                spent[next(mode for at, mode in reversed(switches) if at <= before)].append(now - before)
            assert min(len(found) for found in spent.values()) > 100
            ratio = statistics.median(spent["silent"]) / statistics.median(spent["open"])
            record_property(f"ratio {trial.number}", ratio)
            print(f"step time, MLflow stuck / there: {ratio:.3f} over {len(spent['silent'])} / {len(spent['open'])}")
            assert 0.8 < ratio < 1.25
            proxy.mode = "open"


def built_chain(store: Store, work: Path, folder: Path) -> dict[str, Manifest]:
    """Three versions, each made from the one before, and what their builds owe: MLflow was down all the time."""
    made: dict[str, Manifest] = {}
    for asset, inputs in (("raw_corpus", ()), ("base_model", ("raw_corpus",)), ("sft_model", ("base_model",))):
        record = open_record(work / store.recipe / asset / "attempt")
        write_events(
            record.attempt,
            [
                {"t": 1000.0 + step, "kind": "metrics", "step": step, "values": {"loss": 1 / step}}
                for step in range(1, 600)
            ],
        )
        made[asset] = publish_version(store, folder, asset, asset, {name: made[name] for name in inputs})
        note_published(record, made[asset], store)
        certificate = with_evidence(store, certificate_of(made[asset], 2.0))
        store.write_certificate(certificate)
        store.promote(
            Promotion(
                asset=asset,
                version=made[asset].version,
                digest=made[asset].digest,
                certificate_digest=certificate.digest,
                promoted_at=0.0,
                promoted_by="test",
            )
        )
    return made


def ancestors(url: str) -> list[tuple[str, str, bool]]:
    return [(one.asset, one.digest, one.run_id is not None) for one in lineage_of(url, "sft_model")]


@pytest.mark.promise(
    "After an outage of a whole chain, `gatehouse sync` puts runs, lineage, versions and champions "
    "into MLflow, and into a new one again"
)
def test_sync(promise: Promise, server: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = Store(str(home / "store"), "tiny")
    made = built_chain(store, home / "work", tmp_path)

    def sync(url: str) -> subprocess.CompletedProcess[str]:
        return run_command([str(BIN / "gatehouse"), "sync"], cwd=ROOT, env=environment(home, MLFLOW_TRACKING_URI=url))

    for trial in promise.trials(quick=1, full=2):
        with trial:
            refused = sync("http://ann:canary@127.0.0.1:1")
            assert refused.returncode == 1 and "canary" not in refused.stdout, refused.stdout
            assert all(has_undelivered(home / "work" / "tiny" / asset / "attempt") for asset in made) or trial.number
            url = f"http://127.0.0.1:{server}" if trial.number == 0 else f"sqlite:///{tmp_path}/other/mlflow.db"
            done = sync(url)
            assert done.returncode == 0, done.stdout
            assert ancestors(url) == [
                (asset, made[asset].digest, True) for asset in ("sft_model", "base_model", "raw_corpus")
            ]
            from mlflow import MlflowClient

            client = MlflowClient(url, url)
            for asset, manifest in made.items():
                run = client.get_run(store.links(asset, manifest.version)["mlflow_run_id"])
                assert len(client.get_metric_history(run.info.run_id, "curves/loss")) == 599
                assert run.info.status == "FINISHED" and run.data.tags["verdict"] == "promoted"
            for asset in ("base_model", "sft_model"):
                champion = client.get_model_version_by_alias(asset, "champion")
                assert champion.tags["version"] == made[asset].version
            parent = store.links("base_model", made["base_model"].version)["mlflow_model_id"]
            child = client.get_run(store.links("sft_model", made["sft_model"].version)["mlflow_run_id"])
            assert [used.model_id for used in child.inputs.model_inputs] == [parent]
            again = sync(url)
            assert again.returncode == 0 and "had everything" in again.stdout, again.stdout
            assert len(runs_of(client, "tiny")) == 3
