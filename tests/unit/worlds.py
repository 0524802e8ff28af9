"""A recipe's store with versions whose evidence is written down, so that judging them runs no job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.building.builder import Builder, Judgement
from pipeline.building.planner import plan_asset, plan_evaluation
from pipeline.graph import EXCLUSIONS
from pipeline.jobs.launcher import launcher_entry, open_launcher
from pipeline.recipes.loader import load_recipe
from pipeline.tracking.tracker import Tracker
from training.specs.artifacts import InputRecord, Manifest
from training.specs.base import digest_of
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, EvaluationReport, exact
from training.specs.job import Input
from training.store.store import Store

UPSTREAM = ("raw_corpus", "corpus", "evaluation_sets", "tokenizer", "packed_shards")
"""What a base model is made from and judged with."""

RECIPE = """\
extends: smoke
name: unit
sources:
  - {{name: notes, path: {path}}}
gates:
  raw_corpus:
    - {{metric: bytes, must_be: ">=", threshold: 10}}
    - {{metric: documents, must_be: ">=", threshold: 2}}
  corpus:
    - {{metric: bytes, must_be: ">=", threshold: 10}}
  base_model:
    - {{metric: clean_stop_rate, must_be: ">=", threshold: 0.3, champion_margin: 0.05}}
"""
NOWHERE = "http://127.0.0.1:1"


def silent(_events: list[dict[str, Any]]) -> None:
    """Nobody listens."""


@dataclass
class World:
    """One user's recipe and store, and who builds with them."""

    folder: Path
    overrides: list[str] = field(default_factory=list)
    tracking: str = NOWHERE

    @property
    def builder(self) -> Builder:
        loaded = load_recipe(str(self.folder / "unit.yaml"), self.overrides)
        tracker = Tracker(self.tracking, "unit")
        if self.tracking == NOWHERE:  # known to be down, so that no test waits for it
            tracker._connection._down_until = time.monotonic() + 3600
        return Builder(
            loaded=loaded,
            store=self.store,
            launcher=open_launcher(launcher_entry(loaded)),
            tracker=tracker,
            work=self.folder / "work",
            owner="test",
            labels={},
        )

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"), "unit")

    def path(self, asset: str) -> Path:
        return self.folder / "store" / "unit" / asset

    def publish(
        self, asset: str, metrics: dict[str, float], current: bool = True, missing: dict[str, str] | None = None
    ) -> Manifest:
        """A version with its evidence.

        Args:
            current: It is what the recipe asks for now.
            missing: What could not be measured, and why.
        """
        plan = plan_asset(asset, self.builder.loaded, self.store)
        inputs = {name: _record(used) for name, used in plan.inputs.items()}
        identity = plan.identity if current else digest_of([asset, time.time_ns()])
        return self.evaluated(
            self._publish(
                asset,
                identity,
                plan.fingerprint,
                inputs,
                plan.section,
                {"data.txt": str(metrics), EXCLUSIONS: "none", "report/card.md": asset},
            ),
            metrics,
            missing,
        )

    def passing(self, asset: str) -> dict[str, float]:
        """Metrics that just pass every gate of an asset."""
        return {
            gate.metric: gate.threshold + {">": 1, "<": -1}.get(gate.must_be, 0)
            for gate in self.builder.loaded.recipe.gates_of(asset)
        }

    def evaluated(
        self, manifest: Manifest, metrics: dict[str, float], missing: dict[str, str] | None = None
    ) -> Manifest:
        """Write down what an evaluation on today's terms would say of a version."""
        plan = plan_evaluation(manifest, self.builder.loaded, self.store)
        estimates = {name: exact(value, 1) for name, value in metrics.items()}
        report = EvaluationReport(estimates=estimates, missing=missing or {})
        inputs = {name: _record(used) for name, used in plan.inputs.items()}
        self._publish(
            plan.asset,
            plan.identity,
            plan.fingerprint,
            inputs,
            plan.section,
            {REPORT_FILE: report.model_dump_json(), ITEMS_FILE: ""},
        )
        return manifest

    def publish_upstream(self) -> None:
        """Promote what a base model needs."""
        for asset in UPSTREAM:
            self.publish(asset, self.passing(asset))
            assert self.judge(asset).promoted

    def judge(self, asset: str) -> Judgement:
        """Judge the current version as a run would."""
        return self.builder.judge(asset, silent)

    def promoted(self, asset: str) -> str:
        """The promoted version, empty when there is none."""
        pointer = self.store.promotion(asset)
        return pointer.version if pointer else ""

    def with_overrides(self, *overrides: str) -> World:
        """The same store under a changed recipe."""
        return replace(self, overrides=list(overrides))

    def assert_no_job_ran(self) -> None:
        """No attempt has a log."""
        assert not list(self.folder.glob("work/**/job.json"))

    def _publish(
        self,
        asset: str,
        identity: str,
        fingerprint: str,
        inputs: dict[str, InputRecord],
        section: dict[str, object],
        files: dict[str, str],
    ) -> Manifest:
        attempt = self.folder / "attempt" / asset
        for name, text in files.items():
            (attempt / name).parent.mkdir(parents=True, exist_ok=True)
            (attempt / name).write_text(text)
        while (known := self.store.versions(asset)) and known[-1] >= time.strftime("%Y%m%dT%H%M%S", time.gmtime()):
            time.sleep(0.02)  # versions of one second are not in order
        return self.store.publish(
            attempt,
            Manifest(
                asset=asset,
                version="",
                stage=asset,
                recipe="unit",
                identity=identity,
                fingerprint=fingerprint,
                digest="",
                files={},
                inputs=inputs,
                metrics={},
                section=section,
                seed=0,
                started_at=time.time(),
                seconds=0.0,
            ),
        )


def _record(used: Input) -> InputRecord:
    return InputRecord(asset=used.asset, version=used.version, digest=used.digest)


def messages(events: Sequence[dict[str, Any]]) -> str:
    """What was said."""
    return " ".join(event.get("message", "") for event in events)


def new_world(folder: Path) -> World:
    """A recipe over one text, and an empty store."""
    notes = folder / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("one")
    (folder / "unit.yaml").write_text(RECIPE.format(path=notes))
    return World(folder)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path)
