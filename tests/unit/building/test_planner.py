"""What a plan takes from sources that are not on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.building.planner import Plan, plan_asset
from tests import file_server, hub_server
from tests.hub_server import COMMIT, DATASET, NEXT
from tests.unit.worlds import World
from training.specs.execution import Execution

HUB = f"""\
extends: smoke
name: unit
sources:
  - {{name: hub, dataset: {DATASET}, revision: main}}
"""
WEB = """\
extends: smoke
name: unit
sources:
  - {name: web, path: "%s/a.txt?sig=${WEB_SIGNATURE}"}
"""


def plan(folder: Path, recipe: str) -> tuple[Plan, str]:
    """The plan of `raw_corpus`, and its job.json."""
    (folder / "unit.yaml").write_text(recipe)
    world = World(folder)
    planned = plan_asset("raw_corpus", world.builder.loaded, world.store)
    return planned, planned.job(world.store, folder / "work", Execution(), {}).model_dump_json()


def test_a_branch_of_the_hub_is_a_commit_in_the_identity_and_in_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server.serving({COMMIT: {"a.txt": b"x"}, NEXT: {"a.txt": b"y"}}) as server:
        server.connect(monkeypatch, tmp_path / "cache")
        planned, job = plan(tmp_path, HUB)
        assert COMMIT in job and '"main"' not in job
        assert plan(tmp_path, HUB.replace("main", COMMIT))[0].identity == planned.identity
        server.main = NEXT
        assert plan(tmp_path, HUB)[0].identity != planned.identity


def test_a_file_of_the_web_is_known_by_what_its_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_SIGNATURE", "canary-55d0")
    with file_server.serving({"/a.txt": b"one"}) as server:
        planned, job = plan(tmp_path, WEB % server.address)
        assert "canary-55d0" not in job and "${WEB_SIGNATURE}" in job
        monkeypatch.setenv("WEB_SIGNATURE", "canary-renewed")
        assert plan(tmp_path, WEB % server.address)[0].identity == planned.identity
        server.files["/a.txt"] = b"two"
        assert plan(tmp_path, WEB % server.address)[0].identity != planned.identity
