"""Every other way to start a training on an input that no gate let pass: none of them starts one.

The data stages are real. The parent is a version of base_model whose weights are made up, judged by real code on
evidence that is written down: whether its child's training starts is all that is asked. The first test shows that it
does start on a promoted parent.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.building import decisions
from tests.conftest import BIN, ROOT, environment
from tests.integration.bypasses import (
    BAD,
    CHILD,
    GOOD,
    PARENT,
    builder,
    edit,
    judge_parent,
    publish_parent,
    store,
    trainings,
    write_recipe,
)
from tests.integration.served import Served, serve
from tests.integration.workspaces import Workspace
from tests.patience import Patience, run_command
from training.store.store import utc_today

KEY = f"mine/{CHILD}"
REFUSED = "its gate refused it: loss_drop 0.1 fails >= 0.8"
TABLE: list[tuple[str, str]] = []


def noted(way: str, said: str) -> None:
    TABLE.append((way, said))


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    yield
    print("\n| way around | refused with |\n| --- | --- |")
    print("\n".join(f"| {way} | {said} |" for way, said in TABLE))


@pytest.fixture(scope="module")
def ungated(data_chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Data stages built and promoted; base_model is there and was never judged."""
    made = copy(data_chain, tmp_path_factory.mktemp("ungated"))
    write_recipe(made, data_chain.notes)
    publish_parent(made)
    return made


def copy(space: Workspace, folder: Path) -> Workspace:
    """A copy over the same texts, so that everything in it is as fresh as it was."""
    copied = space.moved(folder)
    copied.recipe.write_text(space.recipe.read_text())
    return copied


@pytest.fixture(scope="module")
def refused(ungated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """base_model's gate refused it."""
    made = copy(ungated, tmp_path_factory.mktemp("refused"))
    assert not judge_parent(made, BAD)
    return made


@pytest.fixture(scope="module")
def sound(ungated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """base_model is promoted, and its child's job has started: its job.json is there."""
    made = copy(ungated, tmp_path_factory.mktemp("sound"))
    assert judge_parent(made, GOOD)
    made.run("--select", CHILD)
    return made


@pytest.fixture
def tampered(sound: Workspace, tmp_path: Path) -> Workspace:
    """A copy without the child's attempts, but for job.json beside them."""
    made = copy(sound, tmp_path / "tampered")
    job = next((made.home / "work" / "mine" / CHILD).glob("*/job.json"))
    text = job.read_text().replace(str(sound.home), str(made.home))
    shutil.rmtree(job.parent)
    job.parent.mkdir()
    job.write_text(text)
    assert trainings(made) == []
    return made


def job_of(space: Workspace) -> Path:
    return next((space.home / "work" / "mine" / CHILD).glob("*/job.json"))


def test_a_training_starts_on_a_promoted_parent(sound: Workspace) -> None:
    assert trainings(sound), "or none of what follows would show anything"


# Ways to start the child alone, on a parent that its gate refused


@pytest.mark.parametrize(("way", "arguments", "without_home"), [
    ("`dagster asset materialize --select`", ["dagster", "asset", "materialize", "--select", KEY], False),
    ("no `DAGSTER_HOME`", ["dagster", "asset", "materialize", "--select", KEY], True),
    ("`dg launch --assets`", ["dg", "launch", "--assets", KEY], False),
])  # fmt: skip
def test_starting_the_child_alone(refused: Workspace, way: str, arguments: list[str], without_home: bool) -> None:
    env, folder = environment(refused.home, GATEHOUSE_RECIPE=str(refused.recipe)), ROOT
    if without_home:  # from another folder, or Dagster takes the dagster.yaml that lies there
        del env["DAGSTER_HOME"], env["GATEHOUSE_DAGSTER"]
        folder = refused.folder
    done = run_command([str(BIN / arguments[0]), *arguments[1:]], cwd=folder, env=env)
    assert done.returncode != 0
    assert f"{PARENT} " in done.stdout and REFUSED in done.stdout
    assert trainings(refused) == []
    noted(way, f"{PARENT} ... is not promoted; {REFUSED}")


# What runs by itself, or from the browser: a real webserver, a real daemon, real runs


@pytest.fixture(scope="module")
def server(refused: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serve(copy(refused, folder / "user"), folder) as started:
        yield started


def test_materialize_in_the_browser(server: Served) -> None:
    launched = server.ask(
        "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess "
        "{ run { runId } } ... on PythonError { message } } }",
        p={
            "mode": "default",
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": "way", "value": "browser"}]},
            "selector": {
                "repositoryLocationName": "mine",
                "repositoryName": "__repository__",
                "jobName": "__ASSET_JOB",
                "assetSelection": [{"path": ["mine", CHILD]}],
                "assetCheckSelection": [],
            },
        },
    )
    assert launched["__typename"] == "LaunchRunSuccess"
    assert REFUSED in server.failure("way", "browser")
    assert trainings(server.space) == []
    noted("the browser's Materialize (GraphQL `launchRun`)", f"{PARENT} ... is not promoted; {REFUSED}")


def test_a_backfill(server: Served) -> None:
    begun = server.ask(
        "mutation($b: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $b) { __typename ... on "
        "PythonError { message } ... on LaunchBackfillSuccess { backfillId } } }",
        b={"partitionsByAssets": [{"assetKey": {"path": ["mine", CHILD]}}]},
    )
    assert REFUSED in server.failure("dagster/backfill", begun["backfillId"])
    assert trainings(server.space) == []
    noted("a backfill (GraphQL `launchPartitionBackfill`)", f"{PARENT} ... is not promoted; {REFUSED}")


def test_a_sensor(server: Served) -> None:
    assert REFUSED in server.failure("dagster/sensor_name", "pushes")
    assert trainings(server.space) == []
    noted("a sensor's run request", f"{PARENT} ... is not promoted; {REFUSED}")


def test_an_automation_condition(server: Served) -> None:
    with server.instance() as instance:
        patience = Patience(150)
        while not any("dagster/from_automation_condition" in run.tags for run in instance.get_runs()):
            assert not patience.is_over(), server.log.read_text()[-3000:]
            server.new_parent(instance)
            time.sleep(5)
    assert REFUSED in server.failure("dagster/from_automation_condition")
    assert trainings(server.space) == []
    noted("`AutomationCondition.eager()`", f"{PARENT} ... is not promoted; {REFUSED}")


def test_the_schedule(server: Served) -> None:
    said = server.failure("dagster/schedule_name", "mine_nightly")
    assert f"{PARENT} check loss_drop: loss_drop 0.1 fails >= 0.8" in said
    assert CHILD not in said, "it was not even tried"
    assert trainings(server.space) == []
    noted("the nightly schedule, the whole graph", "base_model's check loss_drop failed; sft_model was skipped")


# Tampering, on a parent that is promoted until then


def certificate(space: Workspace) -> Path:
    return next((space.home / "store" / "mine" / PARENT / "certificates").glob("*.json"))


def verdict_edited(space: Workspace) -> None:
    verdict = json.loads(certificate(space).read_text())["verdicts"][0]
    edit(certificate(space), verdicts=[verdict | {"value": 5.0}])


def threshold_edited(space: Workspace) -> None:
    verdict = json.loads(certificate(space).read_text())["verdicts"][0]
    edit(certificate(space), verdicts=[verdict | {"threshold": 0.01}])


def thresholds_of_the_recipe_edited(space: Workspace) -> None:
    space.recipe.write_text(space.recipe.read_text().replace("threshold: 0.8", "threshold: 0.01"))


def weights_swapped(space: Workspace) -> None:
    next((space.home / "store" / "mine" / PARENT).glob("versions/*/model/model.safetensors")).write_text("made UP")


def certificate_of_another_version(space: Workspace) -> None:
    pointer = space.home / "store" / "mine" / PARENT / "promoted.json"
    time.sleep(1.1)  # a version of another second
    other = publish_parent(space)
    path = certificate(space)
    path.with_name(f"{other.version}.json").write_bytes(path.read_bytes())
    edit(pointer, version=other.version, digest=other.digest)


def pointer_edited(space: Workspace) -> None:
    time.sleep(1.1)
    other = publish_parent(space)
    edit(space.home / "store" / "mine" / PARENT / "promoted.json", version=other.version, digest=other.digest)


def waiver_expired(space: Workspace) -> None:
    """The certificate that a waiver would have given, on the day after."""
    yesterday = str(utc_today() - timedelta(days=1))
    (space.home / "store" / "mine" / PARENT / "promoted.json").unlink()
    strict = space.recipe.read_text().replace("threshold: 0.8", "threshold: 9")
    space.recipe.write_text(strict)
    made = store(space).latest(PARENT)
    assert made is not None
    judged = decisions.waive(builder(space), PARENT, "loss_drop", "a demo", utc_today(), "ada", lambda _events: None)
    assert judged.promoted
    issued = judged.certificate.model_dump(mode="json")
    edit(certificate(space), waivers=[issued["waivers"][0] | {"until": yesterday}])
    expired = store(space).certificate(PARENT, made.version)
    assert expired is not None
    edit(space.home / "store" / "mine" / PARENT / "promoted.json", certificate_digest=expired.digest)


def waiver_expired_upstream(space: Workspace) -> None:
    """As above, on what the parent was made from."""
    issued = json.loads(certificate(space).read_text())
    waiver = {
        "asset": "tokenizer",
        "version": "20260101T000000-0",
        "gate": "round_trip",
        "reason": "a demo",
        "author": "ada",
        "until": str(utc_today() - timedelta(days=1)),
        "created_at": 0.0,
    }
    edit(certificate(space), inherited=[waiver])
    expired = store(space).certificate(PARENT, issued["version"])
    assert expired is not None
    edit(space.home / "store" / "mine" / PARENT / "promoted.json", certificate_digest=expired.digest)


@pytest.mark.parametrize(("way", "tamper", "said"), [
    ("an edited verdict", verdict_edited, "its certificate is not the one it was promoted with"),
    ("an edited threshold in the certificate", threshold_edited, "its certificate is not the one it was promoted with"),
    ("an edited threshold in the recipe", thresholds_of_the_recipe_edited, "judged on other terms: the asset's gates"),
    ("a swapped weight file", weights_swapped, "the file model/model.safetensors has changed since it was published"),
    ("a certificate copied from another version", certificate_of_another_version, "its certificate belongs to base_mo"),
    ("`promoted.json` edited by hand", pointer_edited, "has no certificate"),
    ("an expired waiver", waiver_expired, "rests on a waiver that has expired: ada waived loss_drop of base_model"),
    ("an expired waiver upstream", waiver_expired_upstream, "that has expired: ada waived round_trip of token"),
])  # fmt: skip
def test_tampering(tampered: Workspace, way: str, tamper: Callable[[Workspace], None], said: str) -> None:
    tamper(tampered)
    done = tampered.run("--select", CHILD)
    assert done.returncode == 2, done.stdout
    line = next((line for line in done.stdout.splitlines() if said in line), "")
    assert line, done.stdout
    assert trainings(tampered) == []
    noted(way, line.partition(": ")[2][:160])


def forged_input(**values: Any) -> Callable[[Workspace], None]:
    def forge(space: Workspace) -> None:
        job = json.loads(job_of(space).read_text())
        job["inputs"][PARENT] |= values
        job_of(space).write_text(json.dumps(job))

    return forge


def disguised_as_an_evaluation(space: Workspace) -> None:
    job = json.loads(job_of(space).read_text())
    job["asset"] = f"{CHILD}.evaluation"
    job["inputs"][PARENT]["promoted"] = False
    job_of(space).write_text(json.dumps(job))


def nothing_promoted(space: Workspace) -> None:
    (space.home / "store" / "mine" / PARENT / "promoted.json").unlink()


@pytest.mark.parametrize(("way", "tamper", "said"), [
    ("a parent that is not promoted", nothing_promoted, "is not promoted"),
    ("`promoted: false`", forged_input(promoted=False), "must be promoted; only an evaluation may read what is not"),
    ("a training that says it is an evaluation", disguised_as_an_evaluation, "is evaluate_model, not sft_model"),
    ("no certificate", forged_input(certificate=""), "names no certificate"),
    ("a forged certificate digest", forged_input(certificate="0" * 64), "was planned on the certificate 000000000000"),
    ("an edited verdict", verdict_edited, "its certificate is not the one it was promoted with"),
    ("a swapped weight file", weights_swapped, "the file model/model.safetensors has changed since it was published"),
])  # fmt: skip
def test_the_job_started_by_hand(tampered: Workspace, way: str, tamper: Callable[[Workspace], None], said: str) -> None:
    tamper(tampered)
    done = tampered.command("python", "-m", "training.run", str(job_of(tampered)))
    assert done.returncode == 2 and "Traceback" not in done.stdout, done.stdout
    line = next((line for line in done.stdout.splitlines() if said in line), "")
    assert line, done.stdout
    assert trainings(tampered) == []
    noted(f"`python -m training.run job.json` by hand: {way}", line.removeprefix("error: ")[:160])


def test_an_evaluation_that_was_killed_half_way(ungated: Workspace, tmp_path: Path) -> None:
    space = copy(ungated, tmp_path / "killed")
    process = subprocess.Popen(
        [str(BIN / "gatehouse"), "run", "-r", str(space.recipe), "--select", PARENT],
        cwd=ROOT,
        env=environment(space.home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    patience = Patience(120)
    while not list(space.home.glob(f"work/mine/{PARENT}.evaluation/*/events.jsonl")):
        assert process.poll() is None and not patience.is_over(), "the evaluation does not start"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert store(space).certificate(PARENT, store(space).versions(PARENT)[-1]) is None
    done = space.run("--select", CHILD)
    assert done.returncode == 2 and "was never judged" in done.stdout, done.stdout
    assert trainings(space) == []
    noted(
        "the evaluation killed half-way (SIGKILL), then the child",
        f"{PARENT} ... was never judged: materialize {PARENT} so that its gates run",
    )
