"""A user's chain up to a base model whose bytes are made up: enough to see whether its child's training starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pipeline.building.builder import Builder
from pipeline.building.planner import plan_asset, plan_evaluation
from pipeline.jobs.launcher import launcher_entry, open_launcher
from pipeline.recipes.loader import load_recipe
from pipeline.tracking.tracker import Tracker
from tests.integration.workspaces import Workspace
from training.specs.artifacts import InputRecord, Manifest
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, EvaluationReport, exact
from training.store.store import Store

PARENT, CHILD = "base_model", "sft_model"
GOOD, BAD = 2.0, 0.1
GATE = """\
  base_model:
    - {metric: loss_drop, must_be: ">=", threshold: 0.8}
"""


def builder(space: Workspace) -> Builder:
    """Who judges in this process; MLflow is not told."""
    loaded = load_recipe(str(space.recipe))
    tracker = Tracker("http://127.0.0.1:1", "mine")
    tracker._connection._down_until = time.monotonic() + 3600
    return Builder(
        loaded=loaded,
        store=store(space),
        launcher=open_launcher(launcher_entry(loaded)),
        tracker=tracker,
        work=space.home / "work",
        owner="test",
        labels={},
    )


def store(space: Workspace) -> Store:
    """The user's store."""
    return Store(str(space.home / "store"), "mine")


def publish_parent(space: Workspace) -> Manifest:
    """The version of base_model that the recipe asks for, with weights that are none."""
    plan = plan_asset(PARENT, builder(space).loaded, store(space))
    tokenizer = store(space).manifest("tokenizer", plan.inputs["tokenizer"].version)
    inputs = {
        name: InputRecord(asset=used.asset, version=used.version, digest=used.digest)
        for name, used in plan.inputs.items()
    }
    return _publish(
        space,
        plan.asset,
        plan.identity,
        plan.fingerprint,
        plan.section,
        inputs,
        tokenizer.facts,
        {"model/config.json": "{}", "model/model.safetensors": "made up"},
    )


def judge_parent(space: Workspace, loss_drop: float) -> bool:
    """Give the parent evidence of this value and let its gate judge it; return whether it is promoted."""
    made = store(space).latest(PARENT)
    assert made is not None
    plan = plan_evaluation(made, builder(space).loaded, store(space))
    inputs = {
        name: InputRecord(asset=used.asset, version=used.version, digest=used.digest)
        for name, used in plan.inputs.items()
    }
    report = EvaluationReport(estimates={"loss_drop": exact(loss_drop, 1)})
    _publish(
        space,
        plan.asset,
        plan.identity,
        plan.fingerprint,
        plan.section,
        inputs,
        {},
        {REPORT_FILE: report.model_dump_json(), ITEMS_FILE: ""},
    )
    return builder(space).examine(made, lambda _events: None, is_past_version=False).promoted


def _publish(
    space: Workspace,
    asset: str,
    identity: str,
    fingerprint: str,
    section: dict[str, object],
    inputs: dict[str, InputRecord],
    facts: dict[str, str],
    files: dict[str, str],
) -> Manifest:
    attempt = space.folder / "made_up"
    for name, text in files.items():
        (attempt / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt / name).write_text(text)
    return store(space).publish(
        attempt,
        Manifest(
            asset=asset,
            version="",
            stage=asset,
            recipe="mine",
            identity=identity,
            fingerprint=fingerprint,
            digest="",
            files={},
            inputs=inputs,
            metrics={},
            facts=facts,
            section=section,
            seed=0,
            started_at=time.time(),
            seconds=0.0,
        ),
    )


def trainings(space: Workspace) -> list[str]:
    """Attempts of the child that got beyond the verification of their inputs, and versions of it.

    The folder `out` is made when everything has been verified.
    """
    return [path.parent.name for path in space.home.glob(f"work/mine/{CHILD}/*/out")] + store(space).versions(CHILD)


def edit(path: Path, **values: Any) -> None:
    """Replace values of a JSON file, as somebody does who knows of its checksum."""
    record = json.loads(path.read_text())
    record.pop("checksum", None)
    path.write_text(json.dumps(record | values))


def write_recipe(space: Workspace, notes: Path) -> None:
    """The recipe over these texts, with the parent judged by one metric."""
    space.write_recipe(notes)
    space.recipe.write_text(space.recipe.read_text() + GATE)
