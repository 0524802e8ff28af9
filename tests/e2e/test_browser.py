"""The UI as its user sees it: the graph, one click on Materialize, a run that succeeds, nothing left behind."""

import json
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.jobs.local import free_port
from tests.conftest import BIN, ROOT
from tests.e2e.conftest import Chain
from tests.patience import Patience, finish

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def dagster_url(chain: Chain) -> Iterator[str]:
    """`gatehouse up`; afterwards no process of it may be left."""
    port, mlflow_port = free_port(), free_port()
    process = subprocess.Popen(
        [str(BIN / "gatehouse"), "up", "--recipe", "smoke", "--port", str(port), "--mlflow-port", str(mlflow_port)],
        cwd=ROOT,
        env=chain.env(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    else:
        pytest.fail(f"gatehouse up ended: {process.wait()}")
    yield f"http://127.0.0.1:{port}"
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        assert finish(process, 60) == 0
    finally:
        process.kill()
    left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert left == []


def test_materialize_from_the_asset_page(chain: Chain, dagster_url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(f"{dagster_url}/asset-groups")
        expect(page.get_by_text("post_training_data").first).to_be_visible(timeout=60_000)
        page.goto(f"{dagster_url}/assets/smoke/tokenizer")
        expect(page.get_by_text("byte-level BPE", exact=False).first).to_be_visible(timeout=60_000)
        known = set(runs(dagster_url))
        page.get_by_role("button", name=re.compile("Materialize")).first.click()
        wait_for("a new run", lambda: set(runs(dagster_url)) > known, 60)
        run = (set(runs(dagster_url)) - known).pop()
        wait_for("the run to end", lambda: runs(dagster_url)[run] in ("SUCCESS", "FAILURE"), 120)
        page.screenshot(path=tmp_path / "asset.png")
        browser.close()
    assert runs(dagster_url)[run] == "SUCCESS"


def runs(url: str) -> dict[str, str]:
    """Run id to status."""
    return {run["runId"]: run["status"] for run in ask(url, RUNS)["runsOrError"]["results"]}


RUNS = "{ runsOrError(limit: 10) { ... on Runs { results { runId status } } } }"

LAUNCH = """
mutation($config: RunConfigData!) { launchRun(executionParams: {
  selector: {repositoryName: "__repository__", repositoryLocationName: "smoke", jobName: "__ASSET_JOB",
             assetSelection: [{path: ["smoke", "base_model"]}], assetCheckSelection: []},
  runConfigData: $config, mode: "default"}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"
STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"


def test_cancelling_a_run_ends_its_job(chain: Chain, dagster_url: str) -> None:
    config = {"resources": {"recipe": {"config": {"name": "smoke", "overrides": ["base_model.steps=5000"]}}}}
    launched = ask(dagster_url, LAUNCH, config=config)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = launched["run"]["runId"]
    wait_for("the job to train", lambda: jobs(chain, "base_model") != [], 90)
    family = jobs(chain, "base_model")
    ask(dagster_url, TERMINATE, run=run)
    wait_for(
        "the run to be cancelled", lambda: ask(dagster_url, STATUS, run=run)["runOrError"]["status"] == "CANCELED", 60
    )
    wait_for("every process of the job to end", lambda: jobs(chain, "base_model") == [], 30)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert chain.status()["base_model"]["promoted"], "what was published before stays"


def jobs(chain: Chain, asset: str) -> list[psutil.Process]:
    """Processes of an asset's job in this home, supervisor and ranks."""
    mark = str(chain.home / "work" / "smoke" / asset) + "/"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(mark in part for part in process.info["cmdline"] or [])
    ]


def ask(url: str, query: str, **variables: object) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        answer = json.load(reply)
    assert "errors" not in answer, answer["errors"]
    return dict(answer["data"])


def wait_for(what: str, done: Callable[[], bool], seconds: float) -> None:
    patience = Patience(seconds)
    while not done():
        assert not patience.is_over(), f"waited {seconds} s for {what}"
        time.sleep(0.3)
