"""The UI as its user sees it: the graph, one click on Materialize, a run that succeeds, nothing left behind."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.resources.launchers import free_port
from tests.conftest import BIN, ROOT
from tests.e2e.conftest import Chain

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def dagster_url(chain: Chain) -> Iterator[str]:
    """`gatehouse up`; afterwards no process of it may be left."""
    port, mlflow_port = free_port(), free_port()
    process = subprocess.Popen(
        [str(BIN / "gatehouse"), "up", "--recipe", "smoke", "--port", str(port), "--mlflow-port", str(mlflow_port)],
        cwd=ROOT, env=chain.env(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    else:
        pytest.fail(f"gatehouse up ended: {process.wait()}")
    yield f"http://127.0.0.1:{port}"
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert left == []


def test_materialize_from_the_asset_page(chain: Chain, dagster_url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(f"{dagster_url}/asset-groups")
        expect(page.get_by_text("base_model").first).to_be_visible(timeout=60_000)
        page.goto(f"{dagster_url}/assets/smoke/tokenizer")
        expect(page.get_by_text("byte-level BPE", exact=False).first).to_be_visible(timeout=60_000)
        before = page.request.post(f"{dagster_url}/graphql", data={"query": RUNS}).json()
        page.get_by_role("button", name=re.compile("Materialize")).first.click()
        deadline = time.monotonic() + 120
        run = None
        while time.monotonic() < deadline and run is None:
            runs = page.request.post(f"{dagster_url}/graphql", data={"query": RUNS}).json()["data"]["runsOrError"]
            known = {old["runId"] for old in before["data"]["runsOrError"]["results"]}
            run = next((new for new in runs["results"] if new["runId"] not in known
                        and new["status"] in ("SUCCESS", "FAILURE")), None)
            time.sleep(1)
        page.screenshot(path=tmp_path / "asset.png")
        browser.close()
    assert run is not None and run["status"] == "SUCCESS"


RUNS = "{ runsOrError(limit: 10) { ... on Runs { results { runId status } } } }"
