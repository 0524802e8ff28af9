"""The proof of data: the stage makes the files again, and every byte is compared."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.conftest import Pipeline
from training.errors import InputRefused
from training.job.code_digest import CODE_FILE, code_digests, load_digests
from training.job.fingerprint import fingerprint
from training.job.proof import ProofFailed
from training.job.runner import run_job
from training.specs.artifacts import Manifest, Proof
from training.specs.job import Job, ProofRequest
from training.specs.proofs import PROOF_FILE
from training.stages import raw_corpus


@pytest.fixture
def made(pipeline: Pipeline) -> Manifest:
    """A corpus of six texts, two in each part."""
    notes = pipeline.root / "notes"
    notes.mkdir()
    for number in range(6):
        (notes / f"{number}.txt").write_text(f"text {number} " * 90_000)
    pipeline.run("raw_corpus", {"sources": [{"name": "notes", "path": str(notes)}], "shard_megabytes": 1})
    return pipeline.promoted("raw_corpus")


def prove(pipeline: Pipeline, manifest: Manifest, seconds: float = 600) -> Proof:
    """What the job of a proof answers; it raises what the job refuses."""
    attempt = pipeline.root / "proof"
    job = Job(
        stage=manifest.stage,
        asset=manifest.asset,
        recipe=manifest.recipe,
        identity=manifest.identity,
        fingerprint=fingerprint(f"training.stages.{manifest.stage}"),
        seed=manifest.seed,
        section=dict(manifest.section),
        store=pipeline.store.root,
        attempt=str(attempt),
        proof=ProofRequest(version=manifest.version, seconds=seconds),
    )
    versions = pipeline.store.versions(manifest.asset)
    try:
        assert run_job(job) == 0, (attempt / "events.jsonl").read_text()
    finally:
        assert pipeline.store.versions(manifest.asset) == versions, "a proof publishes nothing"
    return Proof.model_validate_json((attempt / PROOF_FILE).read_bytes())


def with_other_rows(pipeline: Pipeline, manifest: Manifest, name: str, data: bytes) -> Manifest:
    """A version that holds another file, as other code would have made it."""
    folder = pipeline.root / "other"
    shutil.copytree(pipeline.store.folder(manifest.asset, manifest.version), folder)
    (folder / "manifest.json").unlink()
    (folder / name).write_bytes(data)
    return pipeline.store.publish(folder, manifest)


def part(pipeline: Pipeline, manifest: Manifest, number: int) -> Path:
    return pipeline.store.folder(manifest.asset, manifest.version) / f"documents/part-{number:05d}.parquet"


def test_equal_bytes_are_a_proof(pipeline: Pipeline, made: Manifest) -> None:
    proof = prove(pipeline, made)
    whole = {name: entry for name, entry in made.files.items() if not name.startswith("report/")}
    assert proof.method == "rebuilt" and proof.files == len(whole) > 1
    assert proof.bytes == sum(entry.bytes for entry in whole.values())


def test_one_byte_is_none(pipeline: Pipeline, made: Manifest) -> None:
    data = bytearray(part(pipeline, made, 0).read_bytes())
    at = data.rindex(b"parquet-cpp")  # the name of its writer, so that every row can be read
    data[at] ^= 1
    other = with_other_rows(pipeline, made, "documents/part-00000.parquet", bytes(data))
    with pytest.raises(
        ProofFailed,
        match=rf"part-00000.parquet is not what today's code makes: all rows are equal, and byte {at:,} ",
    ):
        prove(pipeline, other)


def test_the_first_row_that_differs_is_named(
    pipeline: Pipeline, made: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = raw_corpus._row

    def changed(document: Any) -> dict[str, Any]:
        whole = row(document)
        return whole | {"text": whole["text"].upper()} if "/1.txt" in f"/{whole['path']}" else whole

    monkeypatch.setattr(raw_corpus, "_row", changed)
    with pytest.raises(ProofFailed, match=r"part-00000.parquet is not what .* makes: row 2 differs \(text\)"):
        prove(pipeline, made)
    ending = json.loads((pipeline.root / "proof" / "ending.json").read_text())
    assert "row 2 differs" in ending["message"], "the launcher tells what the job refused"


def test_other_files_are_no_proof(pipeline: Pipeline, made: Manifest) -> None:
    other = with_other_rows(pipeline, made, "documents/extra.parquet", b"more")
    with pytest.raises(ProofFailed, match="only one of the two has documents/extra.parquet"):
        prove(pipeline, other)


def test_what_takes_too_long_is_proven_by_what_is_made_first(
    pipeline: Pipeline, made: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_corpus, "_PART_BYTES", 1_300_000)
    proof = prove(pipeline, made, seconds=0.001)
    assert proof.method == "sample" and proof.files == 1
    assert proof.compared.startswith("1 of 3 files, those that the stage makes first, ")


def test_a_sample_that_differs_is_no_proof(pipeline: Pipeline, made: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_corpus, "_PART_BYTES", 1_300_000)
    row = raw_corpus._row
    monkeypatch.setattr(raw_corpus, "_row", lambda document: row(document) | {"licence": "other"})
    with pytest.raises(ProofFailed, match="part-00000.parquet is not what"):
        prove(pipeline, made, seconds=0.001)


def test_a_version_records_its_functions(pipeline: Pipeline, made: Manifest) -> None:
    data = (pipeline.store.folder(made.asset, made.version) / CODE_FILE).read_bytes()
    recorded = load_digests(data)
    assert recorded == code_digests("training.stages.raw_corpus") and "ShardWriter.add" in recorded
    assert made.files[CODE_FILE].bytes == len(data)


def test_the_functions_are_those_that_ran_and_not_those_on_the_disk_at_the_end(
    pipeline: Pipeline, made: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training takes days, and its sources may be edited meanwhile."""
    digests = {"edited": ["0"]}
    run = raw_corpus.run

    def run_and_edit(context: Any) -> Any:
        monkeypatch.setattr("training.job.runner.code_digests", lambda _module: digests)
        return run(context)

    monkeypatch.setattr(raw_corpus, "run", run_and_edit)
    sections = dict(made.section)
    pipeline.run("raw_corpus", {"sources": sections["sources"], "shard_megabytes": 2})
    again = pipeline.promoted("raw_corpus")
    data = (pipeline.store.folder(again.asset, again.version) / CODE_FILE).read_bytes()
    assert again.version != made.version and load_digests(data) != digests


def test_a_proof_on_other_code_than_it_was_planned_for_is_refused(
    pipeline: Pipeline, made: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.job.runner.fingerprint", lambda _module: f"changed at {time.time()}")
    with pytest.raises(InputRefused, match="is not the one this job was made for"):
        prove(pipeline, made)
