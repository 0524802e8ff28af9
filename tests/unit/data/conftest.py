"""Runs data stages as real jobs against a real store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import with_evidence
from training.job.fingerprint import fingerprint
from training.job.runner import run_job
from training.specs.artifacts import Certificate, Manifest, Promotion
from training.specs.base import digest_of
from training.specs.execution import Execution
from training.specs.gates import Verdict
from training.specs.job import FileInput, Input, Job
from training.store.store import Store, file_entry

RECIPE = "unit"


class Pipeline:
    """Runs one stage after the other in a store of its own and promotes what each makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(str(root / "store"), RECIPE)
        self.attempts = 0
        self.execution = Execution()

    def run(
        self,
        stage: str,
        section: dict[str, Any],
        inputs: tuple[str, ...] = (),
        files: dict[str, Path] | None = None,
        seed: int = 0,
    ) -> Path:
        """Run a stage on promoted inputs and promote it; the folder of the new version."""
        self.attempts += 1
        attempt = self.root / "attempts" / f"{self.attempts:03d}"

        job = Job(
            stage=stage,
            asset=stage,
            recipe=RECIPE,
            identity=digest_of([stage, section, self.attempts]),
            fingerprint=fingerprint(f"training.stages.{stage}"),
            seed=seed,
            section=section,
            inputs={name: self._input(name) for name in inputs},
            files={
                name: FileInput(path=str(path), sha256=file_entry(path).sha256) for name, path in (files or {}).items()
            },
            store=str(self.root / "store"),
            attempt=str(attempt),
            execution=self.execution,
        )

        assert run_job(job) == 0, (attempt / "events.jsonl").read_text()
        self.promote(self.manifest(attempt))
        return self.store.folder(stage, self.manifest(attempt).version)

    def manifest(self, attempt: Path) -> Manifest:
        """The manifest of what an attempt published."""
        result = json.loads((attempt / "result.json").read_text())
        return self.store.manifest(result["asset"], result["version"])

    def promoted(self, asset: str) -> Manifest:
        """The manifest of the promoted version."""
        promotion = self.store.promotion(asset)
        assert promotion is not None
        return self.store.manifest(asset, promotion.version)

    def promote(self, manifest: Manifest) -> None:
        """Certify and promote a version."""
        verdict = Verdict(name="made", passed=True, value=1, must_be="==", threshold=1, reason="made for a test")
        certificate = Certificate(
            asset=manifest.asset,
            version=manifest.version,
            artifact_digest=manifest.digest,
            suite_digest="",
            evaluator_fingerprint="",
            evaluation_version="",
            report_digest="",
            items_digest="",
            thresholds_digest="",
            verdicts=(verdict,),
            evaluated_at=time.time(),
            issued_at=time.time(),
            issued_by="test",
        )

        certificate = with_evidence(self.store, certificate)
        self.store.write_certificate(certificate)
        self.store.promote(
            Promotion(
                asset=manifest.asset,
                version=manifest.version,
                digest=manifest.digest,
                certificate_digest=certificate.digest,
                promoted_at=time.time(),
                promoted_by="test",
            )
        )

    def _input(self, asset: str) -> Input:
        manifest = self.promoted(asset)
        promotion = self.store.promotion(asset)
        assert promotion is not None
        return Input(
            asset=asset, version=manifest.version, digest=manifest.digest, certificate=promotion.certificate_digest
        )


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """A pipeline in a folder of its own."""
    return Pipeline(tmp_path)


@pytest.fixture(scope="session")
def make_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Pipeline]:
    """Makes further pipelines."""
    return lambda: Pipeline(tmp_path_factory.mktemp("pipeline"))
