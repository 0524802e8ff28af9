"""The tracker against a real MLflow SQLite store, and against a server that is not there."""

from __future__ import annotations

import json
import logging
import math
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.addresses import TRAINING_VIEW, run_url
from pipeline.cli import sync as command
from pipeline.cli.console import make_console
from pipeline.tracking.connection import without_password
from pipeline.tracking.delivery import Delivery, deliver_pending, note_published, requeue_missing
from pipeline.tracking.metrics_follower import read_points
from pipeline.tracking.outbox import has_undelivered, open_record
from pipeline.tracking.promotions import publish_late
from pipeline.tracking.records import entity_name
from pipeline.tracking.tracker import Tracker
from tests.conftest import ROOT, share_database
from tests.integration import lineage
from tests.integration.lineage import Ancestor
from tests.patience import at_most, wait_for
from training.errors import InputRefused
from training.specs.artifacts import Certificate, InputRecord, Manifest
from training.specs.base import digest_of
from training.specs.evidence import EvaluationReport, exact
from training.specs.gates import Verdict
from training.specs.job import Job
from training.store.store import Store

MLFLOW_PAGE = "http://127.0.0.1:5000"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """The address of an empty database."""
    database = tmp_path / "home" / "mlflow" / "mlflow.db"
    share_database(database)
    return f"sqlite:///{database}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), "tiny")


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return Tracker(uri, "tiny", "http://127.0.0.1:3000", MLFLOW_PAGE)


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def lineage_of(uri: str, asset: str) -> list[Ancestor]:
    """The candidate of a model of tiny, and everything it was made from."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    return lineage.walk(client, experiment, asset, lineage.registered_run(client, asset, ("candidate",)))


def publish_version(store: Store, tmp_path: Path, asset: str, content: str, inputs: Mapping[str, Manifest]) -> Manifest:
    folder = tmp_path / "attempt" / asset
    (folder / "report").mkdir(parents=True)
    (folder / "weights.bin").write_text(content)
    (folder / "report" / "card.md").write_text(f"# {asset}")
    return store.publish(
        folder,
        Manifest(
            asset=asset,
            version="",
            stage=asset,
            recipe="tiny",
            identity=digest_of([asset, content]),
            fingerprint=digest_of(asset),
            digest="",
            files={},
            inputs={name: InputRecord(asset=m.asset, version=m.version, digest=m.digest) for name, m in inputs.items()},
            metrics={"loss": 3.5},
            headline="loss",
            facts={"precision": "bf16"},
            section={"steps": 10, "architecture": {"hidden": 192}},
            seed=1,
            started_at=time.time(),
            seconds=2.0,
            labels={"dagster_run_id": "dagster-1"},
        ),
    )


def track(tracker: Tracker, store: Store, manifest: Manifest) -> dict[str, str]:
    run_id = tracker.begin(manifest.version, manifest, started=manifest.started_at)
    links = tracker.publish(run_id, manifest, store.folder(manifest.asset, manifest.version), store)
    store.write_links(manifest.asset, manifest.version, links)
    tracker.finish(run_id, manifest.started_at + manifest.seconds)
    return links


def chain(tracker: Tracker, store: Store, tmp_path: Path) -> dict[str, Manifest]:
    made: dict[str, Manifest] = {}
    for asset, inputs in (("raw_corpus", []), ("base_model", ["raw_corpus"]), ("sft_model", ["base_model"])):
        made[asset] = publish_version(store, tmp_path, asset, asset, {name: made[name] for name in inputs})
        track(tracker, store, made[asset])
    return made


def certificate_of(manifest: Manifest, value: float) -> Certificate:
    verdict = Verdict(
        name="loss_drop",
        passed=value >= 1,
        value=value,
        must_be=">=",
        threshold=1.0,
        reason=f"loss_drop {value:g} {'passes' if value >= 1 else 'fails'} >= 1",
    )
    return Certificate(
        asset=manifest.asset,
        version=manifest.version,
        artifact_digest=manifest.digest,
        suite_digest="s",
        evaluator_fingerprint="e",
        evaluation_version="v",
        report_digest="r",
        items_digest="i",
        thresholds_digest="t",
        verdicts=(verdict,),
        evaluated_at=time.time(),
        issued_at=time.time(),
        issued_by="test",
    )


JOB = Job(
    stage="base_model",
    asset="base_model",
    recipe="tiny",
    identity="identity",
    fingerprint="",
    seed=0,
    section={"steps": 1},
    inputs={},
    store="",
    attempt="",
)


def write_events(attempt: Path, events: Sequence[Mapping[str, Any]]) -> None:
    with (attempt / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def events_of(steps: int) -> list[dict[str, Any]]:
    events = [
        {
            "t": 1000.0 + step,
            "kind": "metrics",
            "step": step,
            "values": {"train/loss": 5.0 - step / 100, "train/grad norm": 1.0},
        }
        for step in range(steps)
    ]
    return [
        *events,
        {"t": 9.0, "kind": "log", "level": "info", "message": "not a metric"},
        {"t": 2000.0, "kind": "metrics", "step": steps, "values": {"odd": "nan", "huge": "inf"}},
    ]


def test_lineage_is_walked_through_the_client_alone(uri: str, tracker: Tracker, store: Store, tmp_path: Path) -> None:
    made = chain(tracker, store, tmp_path)
    client = client_of(uri)
    version = client.get_model_version_by_alias("sft_model", "candidate")
    assert version.tags["digest"] == made["sft_model"].digest
    asset, run = "sft_model", client.get_run(version.run_id)
    walked = []
    while run.inputs.dataset_inputs:
        used = run.inputs.dataset_inputs[0]
        tags = {tag.key: tag.value for tag in used.tags}
        assert tags["digest"].startswith(used.dataset.digest)
        producers = client.search_runs([run.info.experiment_id], f"tags.`digest` = '{tags['digest']}'")
        assert len(producers) == 1
        asset, run = used.dataset.name, producers[0]
        walked.append(asset)
    assert walked == ["base_model", "raw_corpus"]

    ancestors = lineage_of(uri, "sft_model")
    assert [(a.asset, a.digest, a.used_by) for a in ancestors] == [
        ("sft_model", made["sft_model"].digest, None),
        ("base_model", made["base_model"].digest, "sft_model"),
        ("raw_corpus", made["raw_corpus"].digest, "base_model"),
    ]
    assert all(a.run_id for a in ancestors)


def test_a_model_is_registered_without_weights_or_pickles(
    uri: str, tracker: Tracker, store: Store, tmp_path: Path
) -> None:
    made = chain(tracker, store, tmp_path)
    client = client_of(uri)
    links = store.links("sft_model", made["sft_model"].version)
    run = client.get_run(links["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["architecture.hidden"] == "192"
    assert run.data.metrics["result/loss"] == 3.5
    assert run.data.tags["dagster_run"] == "dagster-1"
    assert "(http://127.0.0.1:3000/runs/dagster-1)" in run.data.tags["mlflow.note.content"]
    assert run.info.end_time - run.info.start_time == 2000, "the job's own time, and not the tracker's"
    shown = [name for name in run.data.tags if not name.startswith("mlflow.")]
    assert len(shown) <= 10 and max(map(len, shown)) <= 12
    assert [m.model_id for m in run.outputs.model_outputs] == [links["mlflow_model_id"]]
    parent = store.links("base_model", made["base_model"].version)
    assert [m.model_id for m in run.inputs.model_inputs] == [parent["mlflow_model_id"]]
    model = client.get_logged_model(links["mlflow_model_id"])
    assert model.status.value == "READY"
    files = {path.name for path in (tmp_path / "home/mlflow/artifacts").rglob("*") if path.is_file()}
    assert files == {"MLmodel", "README.md", "manifest.json", "card.md"}
    assert links["mlflow_url"] == run_url(MLFLOW_PAGE, run.info.experiment_id, run.info.run_id)
    assert links["mlflow_model_url"] == f"{MLFLOW_PAGE}/#/models/sft_model/versions/1{TRAINING_VIEW}"


def test_recording_twice_changes_nothing(uri: str, tracker: Tracker, store: Store, tmp_path: Path) -> None:
    made = chain(tracker, store, tmp_path)
    manifest = made["sft_model"]
    links = store.links("sft_model", manifest.version)
    run_id = links["mlflow_run_id"]
    again = tracker.publish(run_id, manifest, store.folder("sft_model", manifest.version), store)
    assert again == links
    for _ in range(2):
        tracker.judged(manifest, links, certificate_of(manifest, 2.0), None, promoted=True, store=store)
    client = client_of(uri)
    run = client.get_run(run_id)
    assert len(client.get_metric_history(run_id, "result/loss")) == 1
    assert (len(run.inputs.dataset_inputs), len(run.inputs.model_inputs), len(run.outputs.model_outputs)) == (1, 1, 1)
    assert len(client.search_model_versions("name = 'sft_model'")) == 1


def test_a_restarted_attempt_goes_on_with_its_run(tracker: Tracker, uri: str) -> None:
    first = tracker.begin("key", JOB)
    assert first is not None
    assert Tracker(uri, "tiny").begin("key", JOB) == first
    assert tracker.fail(first, "out of memory")
    run = client_of(uri).get_run(first)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "out of memory")
    assert tracker.begin("another build", JOB) not in (None, first)
    changed = JOB.model_copy(update={"section": {"steps": 1, "log_every": 5}, "seed": 3})
    assert tracker.begin("key", changed, first) == first, "MLflow changes no parameter, and the seed is one"
    run = client_of(uri).get_run(first)
    assert (run.info.status, run.data.tags.get("error")) == ("RUNNING", None)
    assert run.data.params == {"steps": "1", "seed": "0", "log_every": "5"}


def test_of_runs_that_one_request_began_twice_the_first_is_kept(tracker: Tracker, uri: str) -> None:
    first = tracker.begin("key", JOB)
    client = client_of(uri)
    again = client.create_run(client.get_run(first).info.experiment_id, tags={"build": "key"}).info.run_id
    assert tracker.begin("key", JOB) == first
    assert client.get_run(again).info.lifecycle_stage == "deleted"


def test_what_somebody_deleted_is_restored(tracker: Tracker, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    client, first = client_of(uri), tracker.begin("key", JOB)
    assert first is not None
    experiment = client.get_run(first).info.experiment_id
    client.delete_experiment(experiment)
    after = Tracker(uri, "tiny")
    second = after.begin("another", JOB)
    assert second is not None and client.get_run(second).info.experiment_id == experiment
    client.delete_run(first)
    assert after.begin("key", JOB, first) == first
    assert client.get_run(first).info.lifecycle_stage == "active"
    assert "the experiment tiny was deleted in MLflow" in caplog.text and f"the run {first} was deleted" in caplog.text


def test_a_judgement_of_a_deleted_run_is_recorded(tracker: Tracker, uri: str, store: Store, tmp_path: Path) -> None:
    manifest = publish_version(store, tmp_path, "raw_corpus", "x", {})
    links = track(tracker, store, manifest)
    client_of(uri).delete_run(links["mlflow_run_id"])
    assert tracker.judged(manifest, links, certificate_of(manifest, 2.0), None, promoted=True, store=store)
    assert client_of(uri).get_run(links["mlflow_run_id"]).data.tags["verdict"] == "promoted"


def test_a_deleted_model_version_is_registered_again(tracker: Tracker, uri: str, store: Store, tmp_path: Path) -> None:
    manifest = chain(tracker, store, tmp_path)["base_model"]
    client, runs = client_of(uri), tracker.runs()
    assert runs is not None and requeue_missing(tmp_path / "work", store, tracker, runs) == 0
    client.delete_model_version("base_model", "1")
    assert requeue_missing(tmp_path / "work", store, tracker, runs) == 1
    assert publish_late(manifest, store, tracker)
    links = store.links("base_model", manifest.version)
    assert client.get_model_version("base_model", links["mlflow_model_version"]).run_id == links["mlflow_run_id"]
    assert tracker.runs() == runs, "it is found again by its version, and not shown twice"


def test_what_is_still_to_be_delivered_is_named_once(
    tracker: Tracker, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_version(store, tmp_path, "raw_corpus", "x", {})
    monkeypatch.setattr(command, "open_store", lambda *_: store)
    monkeypatch.setattr(command, "work", lambda: tmp_path / "work")
    monkeypatch.setattr(command, "open_tracker", lambda *_, **__: tracker)
    delivery = Delivery(pending=[f"raw_corpus {store.versions('raw_corpus')[0]}"])
    monkeypatch.setattr(command, "deliver_pending", lambda *_: delivery)
    monkeypatch.setattr(command, "publish_late", lambda *_: False)
    assert not command._sync("tiny", make_console())
    output = capsys.readouterr().out
    assert (
        "still to be delivered: raw_corpus" in output
        and output.count("raw_corpus") == 1
        and "had everything" not in output
    )
    monkeypatch.undo()


def test_every_name_is_one_that_mlflow_takes() -> None:
    from mlflow.utils import validation

    given = [
        "http/",
        "a//b",
        "a/./b",
        "trail/.",
        "",
        "/",
        ".",
        "..",
        "../x",
        "/abs",
        "..x/y",
        "a/../b",
        "x" * 249 + "//",
        "x" * 249 + "/..",
        "net\u2028work",
        "a\n",
        "ü b",
        "...",
        ".../x",
        "a/.../b",
        "x" * 300,
    ]
    draw = random.Random(0)
    given += ["".join(draw.choices("ab./ :-_é#\n\0", k=draw.randint(0, 12))) for _ in range(5000)]
    for name in given:
        for check in (validation._validate_metric_name, validation._validate_param_name, validation._validate_tag_name):
            check(entity_name(name))
    plain = ["train/loss", "domains.http", "ü b", "a:b", "eval/heldout_bits_per_byte__my_notes", ".hidden", "a/.b"]
    assert [entity_name(name) for name in plain] == plain, "what MLflow takes stays as it is"


def test_champion_follows_the_verdict(uri: str, tracker: Tracker, store: Store, tmp_path: Path) -> None:
    client = client_of(uri)
    first = publish_version(store, tmp_path, "base_model", "one", {})
    second = publish_version(store, tmp_path, "base_model", "two", {})
    links = {m.version: track(tracker, store, m) for m in (first, second)}
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    report = EvaluationReport(estimates={"choice_accuracy_dcpmi": exact(0.4, 10)})
    (evaluation / "report.json").write_text(report.model_dump_json())

    def champion() -> str | None:
        version = client.get_registered_model("base_model").aliases.get("champion")
        return None if version is None else str(version)

    assert str(client.get_registered_model("base_model").aliases["candidate"]) == "2"
    assert champion() is None
    tracker.judged(first, links[first.version], certificate_of(first, 2.0), evaluation, promoted=True, store=store)
    assert champion() == "1"
    tracker.judged(second, links[second.version], certificate_of(second, 0.5), evaluation, promoted=False, store=store)
    assert champion() == "1"
    assert client.get_model_version("base_model", "2").tags["verdict"] == "refused"
    assert client.get_model_version("base_model", "1").tags["verdict"] == "promoted"
    tracker.judged(second, links[second.version], certificate_of(second, 2.5), evaluation, promoted=True, store=store)
    assert champion() == "2"
    tracker.judged(second, links[second.version], certificate_of(second, 0.1), evaluation, promoted=False, store=store)
    assert champion() is None
    run = client.get_run(links[second.version]["mlflow_run_id"])
    assert run.data.metrics["eval/choice_accuracy_dcpmi"] == 0.4
    assert run.data.metrics["eval/loss_drop"] == 0.1
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"gates.json", "evaluation", "report"}


def test_another_recipe_has_models_of_its_own(uri: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "small")
    manifest = publish_version(store, tmp_path, "base_model", "x", {})
    track(Tracker(uri, "small"), store, manifest)
    assert client_of(uri).get_model_version("small.base_model", "1").tags["asset"] == "base_model"


def test_metrics_are_delivered_once_however_often_they_are_sent(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    record = open_record(tmp_path)
    write_events(tmp_path, events_of(700))
    run_id = tracker.begin(record.build.key, JOB)
    assert run_id is not None
    record.change(run_id=run_id)
    for _ in range(2):
        assert tracker.deliver(record)
        assert record.build.delivered == (tmp_path / "events.jsonl").stat().st_size
        record.change(delivered=0)
    client = client_of(uri)
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.timestamp) for m in history] == [(step, 1_000_000 + 1000 * step) for step in range(700)]
    metrics = client.get_run(run_id).data.metrics
    assert math.isnan(metrics["curves/odd"]) and len(client.get_metric_history(run_id, "curves/odd")) == 1
    assert metrics["curves/huge"] > 1e300


def test_torn_and_odd_lines_are_passed_over_and_an_unfinished_one_waits(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    good = json.dumps(events_of(1)[0]).encode()
    odd = (b"5", b"[]", b"{", b"\xff\x00", b'{"kind": "metrics"}', b'{"kind": "metrics", "t": "x", "values": {}}')
    events.write_bytes(b"\n".join([good, *odd, good]) + b"\n" + good[:20])
    record = open_record(tmp_path)
    assert record.build.start == record.end == events.stat().st_size - 20, (
        "what an earlier attempt left is not this one's"
    )
    points, offset = read_points(events, 0, record.end)
    assert len(points) == 4 and offset == record.end


def test_an_event_larger_than_a_batch_is_delivered_whole(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    record = open_record(tmp_path)
    write_events(tmp_path, [{"t": 1.0, "kind": "metrics", "step": 1, "values": {f"m{i}": i for i in range(1200)}}])
    record.change(run_id=tracker.begin(record.build.key, JOB))
    assert tracker.deliver(record)
    assert len(client_of(uri).get_run(record.build.run_id).data.metrics) == 1200


WRITER = """
import json, sys
from pathlib import Path
from pipeline.tracking.outbox import open_record
from pipeline.tracking.tracker import Tracker
from tests.integration.test_tracker import JOB, write_events
uri, name, folder = sys.argv[1:]
tracker = Tracker(uri, "tiny", patience=600)  # they import MLflow at once, maybe beside another load
record = open_record(Path(folder) / name)
write_events(record.attempt, [{"t": step, "kind": "metrics", "step": step, "values": {f"m{i}": i for i in range(50)}}
                            for step in range(40)])
record.change(run_id=tracker.begin(record.build.key, JOB.model_copy(update={"asset": name})))
assert tracker.deliver(record), "lost"
assert tracker.finish(record.build.run_id)
print(record.build.run_id)
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Three processes meet on a database that does not exist yet."""
    uri = f"sqlite:///{tmp_path}/home/mlflow/mlflow.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, f"writer{n}", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    run_ids = [process.communicate()[0].split()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    client = client_of(uri)
    for run_id in run_ids:
        assert client.get_run(run_id).info.status == "FINISHED"
        assert len(client.get_metric_history(run_id, "curves/m49")) == 40


def silent_server() -> socket.socket:
    """Accepts connections and never answers."""
    return socket.create_server(("127.0.0.1", 0), backlog=64)


@pytest.mark.parametrize("silent", [False, True], ids=["closed port", "no answer"])
def test_a_dead_server_costs_seconds_and_raises_nothing(
    store: Store, tmp_path: Path, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = silent_server()
    port = server.getsockname()[1]
    if not silent:
        server.close()
    manifest = publish_version(store, tmp_path, "base_model", "x", {})
    tracker = Tracker(f"http://127.0.0.1:{port}", "tiny", None, MLFLOW_PAGE)
    with at_most(25), caplog.at_level(logging.WARNING, logger="gatehouse.tracker"):
        run_id = tracker.begin("key", JOB)
        assert run_id is None
        assert tracker.publish(run_id, manifest, store.folder("base_model", manifest.version), store) == {}
        tracker.judged(
            manifest, {"mlflow_run_id": "0" * 32}, certificate_of(manifest, 2.0), None, promoted=True, store=store
        )
        tracker.fail("0" * 32, "broken")
        tracker.finish("0" * 32)
        assert tracker.url("0" * 32) is None
    assert "MLflow could not begin the run of base_model" in caplog.text
    server.close()


def test_a_stuck_server_holds_nobody_up_and_its_points_stay_in_the_outbox(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    write_events(tmp_path, events_of(10))
    record.change(run_id="0" * 32)
    with silent_server() as server:
        tracker = Tracker(f"http://127.0.0.1:{server.getsockname()[1]}", "tiny")
        follower = tracker.follower(record, lambda: True, interval=0.01)
        time.sleep(0.5)
        with at_most(7):
            follower.close()
    assert has_undelivered(tmp_path) and record.build.delivered == 0


def test_a_damaged_version_leaves_only_itself_undelivered(
    tracker: Tracker, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asset in ("raw_corpus", "tokenizer"):
        record = open_record(tmp_path / "work" / "tiny" / asset / "attempt")
        note_published(record, publish_version(store, tmp_path, asset, asset, {}), store)
    folder = store.folder

    def damaged(asset: str, version: str) -> Path:
        if asset == "raw_corpus":
            raise InputRefused("what was copied is not what was published")
        return folder(asset, version)

    monkeypatch.setattr(store, "folder", damaged)
    done = deliver_pending(tmp_path / "work", store, tracker)
    assert [name.split()[0] for name in (*done.pending, *done.delivered)] == ["raw_corpus", "tokenizer"]
    monkeypatch.undo()
    assert len(deliver_pending(tmp_path / "work", store, tracker).delivered) == 1


def test_a_damaged_report_leaves_mlflow_to_the_others(tracker: Tracker, store: Store, tmp_path: Path) -> None:
    manifest = publish_version(store, tmp_path, "base_model", "x", {})
    links = track(tracker, store, manifest)
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "report.json").write_text("{")
    assert not tracker.judged(manifest, links, certificate_of(manifest, 2.0), evaluation, promoted=True, store=store)
    assert tracker.finish(links["mlflow_run_id"])


def test_following_survives_an_outage(
    tracker: Tracker, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.connection.DOWN_SECONDS", 0.2)
    record = open_record(tmp_path)
    record.change(run_id=tracker.begin(record.build.key, JOB))
    client = tracker._connection.client()
    works, failed = client.log_batch, threading.Event()

    def broken(*_: Any, **__: Any) -> None:
        failed.set()
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(client, "log_batch", broken)
    follower = tracker.follower(record, lambda: True, interval=0.05)
    write_events(tmp_path, events_of(700))
    wait_for(failed.is_set, 10, "nothing was sent")
    monkeypatch.setattr(client, "log_batch", works)
    wait_for(lambda: record.build.delivered >= record.end, 20, "not everything was delivered")
    follower.close()
    assert len(client_of(uri).get_metric_history(record.build.run_id, "train/loss")) == 700


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("API request to http://ann:s3cret@host:5000/api failed", "API request to http://ann:***@host:5000/api failed"),
        ("postgresql://ann:p@ss/w:rd@db/mlflow?x=1", "postgresql://ann:***@db/mlflow?x=1"),
        ("postgresql://db/mlflow?user=ann&password=s3cret&x=1", "postgresql://db/mlflow?user=ann&password=***&x=1"),
        ("sqlite:////tmp/mlflow.db http://127.0.0.1:5000", "sqlite:////tmp/mlflow.db http://127.0.0.1:5000"),
    ],
)
def test_no_message_shows_a_password(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_importing_the_tracker_leaves_mlflow_alone() -> None:
    code = (
        "import sys, pipeline.workspace, pipeline.defs.metadata, pipeline.defs.webhook\n"
        "pipeline.workspace.open_tracker('tiny', uri='sqlite:///x.db').model_url('a', '1')\n"
        "sys.exit(sorted(set(sys.modules) & {'mlflow', 'torch', 'matplotlib', 'pandas'}) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
