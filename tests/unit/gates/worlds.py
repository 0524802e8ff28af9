"""A store with models and evaluations of them, written by the format's own specs."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.gates.evidence_reader import Evidence, read_evidence
from pipeline.gates.judge import certify
from pipeline.gates.terms import thresholds_digest
from training.specs.artifacts import Certificate, InputRecord, Manifest, Promotion, Waiver
from training.specs.base import digest_of
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, Estimate, EvaluationReport
from training.specs.gates import Gate
from training.store.store import Store
from training.store.validity import Terms

Row = dict[str, Any]
SETS, CODE = "5" * 64, "c" * 64
SECTION: dict[str, object] = {"context": 512}


def shares(metric: str, right: Sequence[bool], **keys: Any) -> list[Row]:
    """Items of a share; a key given as a list has one value an item."""
    return [
        {
            "metric": metric,
            "id": f"{metric}-{number}",
            "score": float(good),
            "weight": 1.0,
            **{key: value[number] if isinstance(value, list) else value for key, value in keys.items()},
        }
        for number, good in enumerate(right)
    ]


def ratios(metric: str, scores: Sequence[float], weights: Sequence[float], **keys: Any) -> list[Row]:
    """Items of a ratio."""
    return [
        {"metric": metric, "id": f"{metric}-{number}", "score": score, "weight": weight, **keys}
        for number, (score, weight) in enumerate(zip(scores, weights, strict=True))
    ]


def nats(count: int, per_byte: float, seed: int = 0) -> list[Row]:
    """Items of bits per byte: nats over bytes, from two sources in turn."""
    draw = random.Random(seed)
    sizes = [draw.randint(500, 5000) for _ in range(count)]
    rows = ratios("heldout_bits_per_byte", [size * per_byte * draw.uniform(0.8, 1.2) for size in sizes], sizes)
    return [row | {"source": ("stdlib", "docs")[number % 2]} for number, row in enumerate(rows)]


def share_of(rows: Sequence[Row]) -> Estimate:
    return Estimate(value=sum(row["score"] for row in rows) / len(rows), count=len(rows), method="wilson")


def ratio_of(rows: Sequence[Row], **shape: Any) -> Estimate:
    shape = {"method": "bootstrap", "count": len(rows), **shape}
    score, weight = (math.fsum(row[key] for row in rows) for key in ("score", "weight"))
    return Estimate(value=Estimate(value=0, **shape).of(score, weight), **shape)


def bits_of(rows: Sequence[Row]) -> Estimate:
    return ratio_of(rows, scale=1 / math.log(2))


@dataclass
class World:
    """One store; `terms` are what every evaluation is made with unless it says otherwise."""

    root: Path
    code: str = CODE
    section: dict[str, object] = field(default_factory=lambda: SECTION)
    sets: str = SETS
    number: int = 0
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(str(self.root / "store"), "tiny")

    def terms(self, gates: Sequence[Gate] = ()) -> Terms:
        suite = digest_of({"evaluation_sets": self.sets, "evaluation": self.section})
        return Terms(thresholds=thresholds_digest(gates), evaluator=self.code, suite=suite)

    def model(self, asset: str = "sft_model", card: str = "---\nlicense: other\n---\n# A model\n") -> Manifest:
        """A new version, with bytes of its own."""
        self.number += 1
        folder = self.root / f"built-{self.number}"
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_text(f"{asset} {self.number}")
        (folder / "model" / "README.md").write_text(card)
        return self._publish(folder, asset, {})

    def evaluation(
        self,
        manifest: Manifest,
        report: EvaluationReport | str,
        items: Iterable[Row] | str = (),
        samples: Sequence[Mapping[str, str]] = (),
        *,
        artifact: InputRecord | None = None,
        sets: str = "",
        section: dict[str, object] | None = None,
        code: str = "",
    ) -> Manifest:
        """An evaluation of a version; report and items may be given as text."""
        self.number += 1
        folder = self.root / f"built-{self.number}"
        (folder / "report").mkdir(parents=True)
        text = report if isinstance(report, str) else report.model_dump_json()
        (folder / REPORT_FILE).write_text(text)
        lines = items if isinstance(items, str) else "".join(json.dumps(item) + "\n" for item in items)
        (folder / ITEMS_FILE).write_text(lines)
        (folder / "report" / "samples.json").write_text(json.dumps(list(samples)))
        measured = artifact or InputRecord(asset=manifest.asset, version=manifest.version, digest=manifest.digest)
        inputs = {
            "artifact": measured,
            "evaluation_sets": InputRecord(asset="evaluation_sets", version="v0", digest=sets or self.sets),
        }
        return self._publish(folder, f"{manifest.asset}.evaluation", inputs, section or self.section, code or self.code)

    def evidence(
        self,
        estimates: Mapping[str, Estimate],
        items: Iterable[Row] = (),
        missing: Mapping[str, str] | None = None,
        samples: Sequence[Mapping[str, str]] = (),
        asset: str = "sft_model",
    ) -> Evidence:
        """Evidence of a new version."""
        manifest = self.model(asset)
        report = EvaluationReport(estimates=dict(estimates), missing=dict(missing or {}))
        return self.read(manifest, self.evaluation(manifest, report, items, samples))

    def raw(self, report: str, items: Iterable[Row] | str = ()) -> Evidence:
        """Evidence of a new version, from a report that no evaluator of ours would write."""
        manifest = self.model()
        return self.read(manifest, self.evaluation(manifest, report, items))

    def read(self, manifest: Manifest, evaluation: Manifest) -> Evidence:
        return read_evidence(manifest, evaluation, self.terms(), self.store)

    def certify(
        self,
        evidence: Evidence,
        gates: Sequence[Gate],
        champion: Evidence | None = None,
        waivers: Sequence[Waiver] = (),
        inherited: Sequence[Waiver] = (),
        by: str = "test",
    ) -> Certificate:
        theirs = (champion.manifest, champion.evaluation) if champion else None
        return certify(
            evidence.manifest, evidence.evaluation, gates, self.store, self.terms(gates), by, theirs, waivers, inherited
        )

    def promote(self, certificate: Certificate) -> None:
        self.store.promote(
            Promotion(
                asset=certificate.asset,
                version=certificate.version,
                digest=certificate.artifact_digest,
                certificate_digest=certificate.digest,
                promoted_at=0.0,
                promoted_by="test",
            )
        )

    def _publish(
        self,
        folder: Path,
        asset: str,
        inputs: dict[str, InputRecord],
        section: dict[str, object] | None = None,
        code: str = "f" * 64,
    ) -> Manifest:
        draft = Manifest(
            asset=asset,
            version="",
            stage=asset,
            recipe="tiny",
            identity=f"{self.number:064d}",
            fingerprint=code,
            digest="",
            files={},
            inputs=inputs,
            metrics={},
            section=section or {},
            seed=0,
            versions={"torch": "2.13.0"},
            started_at=1000.0,
            seconds=12.0,
        )
        return self.store.publish(folder, draft)
