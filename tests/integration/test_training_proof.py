"""The proof of a model: the first steps of its training again, and their losses digit by digit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import training_jobs as jobs
from training.errors import EXIT_USER
from training.specs.artifacts import Manifest, Proof
from training.specs.job import Job, ProofRequest
from training.specs.losses import FIRST_LOSSES, FirstLosses
from training.specs.proofs import PROOF_FILE
from training.store.store import Store

FASTER = """
import sys
import training.engine.trainer as trainer

rate = trainer.rate_factor
trainer.rate_factor = lambda *arguments: 1.0001 * rate(*arguments)

from training.job.runner import main

sys.exit(main([sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with data, a base model, an untouched copy of it as the SFT model, and a DPO model."""
    work = tmp_path_factory.mktemp("proofs")
    made = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(made, work)
    for asset in ("base_model", "dpo_model"):
        done = jobs.run(jobs.make_job(made, asset, work / asset))
        assert done.code == 0, done.output
        model = jobs.published(made, work / asset)
        jobs.promote(made, model)
        if asset == "base_model":
            jobs.copy_version(made, model, "sft_model", work / "sft_model")
    return made


def version(store: Store, asset: str) -> Manifest:
    pointer = store.promotion(asset)
    assert pointer is not None
    return store.manifest(asset, pointer.version)


def job_of(store: Store, manifest: Manifest, attempt: Path, **section: object) -> Path:
    """job.json of a proof."""
    path = jobs.make_job(store, manifest.asset, attempt, section)
    job = Job.model_validate_json(path.read_bytes())
    request = ProofRequest(version=manifest.version, seconds=600)
    path.write_text(job.model_copy(update={"proof": request}).model_dump_json())
    return path


def answer(attempt: Path) -> Proof:
    return Proof.model_validate_json((attempt / PROOF_FILE).read_bytes())


def as_once(store: Store, manifest: Manifest, folder: Path) -> Manifest:
    """The same version as code made it that recorded no single losses."""
    shutil.copytree(store.folder(manifest.asset, manifest.version), folder)
    for name in ("manifest.json", FIRST_LOSSES):
        (folder / name).unlink()
    return store.publish(folder, manifest)


def test_every_loss_is_recorded_and_repeated(store: Store, tmp_path: Path) -> None:
    base = version(store, "base_model")
    first = FirstLosses.model_validate_json((store.folder("base_model", base.version) / FIRST_LOSSES).read_bytes())
    assert len(first.losses) == 8 and first.micro_batch_tokens == 256
    done = jobs.run(job_of(store, base, tmp_path))
    assert done.code == 0, done.output
    proof = answer(tmp_path)
    assert (proof.method, proof.steps) == ("losses", 8)
    assert proof.losses == 8 + 3, "each loss, and the means of steps 3 and 4, 5 and 6, 7 and 8"
    assert not list(tmp_path.glob("checkpoints/step-*")) and not (tmp_path / "result.json").exists()
    assert store.versions("base_model") == [base.version]


def test_other_steps_between_logs_change_nothing(store: Store, tmp_path: Path) -> None:
    base = version(store, "base_model")
    assert jobs.run(job_of(store, base, tmp_path, log_every=7)).code == 0
    assert answer(tmp_path).losses == 11


def test_an_older_version_is_compared_by_the_means_that_it_kept(store: Store, tmp_path: Path) -> None:
    old = as_once(store, version(store, "base_model"), tmp_path / "old")
    assert jobs.run(job_of(store, old, tmp_path / "proof")).code == 0
    proof = answer(tmp_path / "proof")
    history = (store.folder("base_model", old.version) / "report" / "training.jsonl").read_text().splitlines()
    assert proof.losses == len(history) and "means of several steps" in proof.compared


def test_code_with_another_learning_rate_is_caught(store: Store, tmp_path: Path) -> None:
    base = version(store, "base_model")
    process = subprocess.run(
        [sys.executable, "-c", FASTER, str(job_of(store, base, tmp_path))],
        cwd=jobs.ROOT,
        env=jobs.environment(),
        capture_output=True,
        text=True,
    )
    assert process.returncode == EXIT_USER, process.stderr
    ending = json.loads((tmp_path / "ending.json").read_text())
    assert "the loss of step 2 is" in ending["message"] and "the version recorded" in ending["message"]
    assert not (tmp_path / PROOF_FILE).exists()


def test_a_recorded_loss_that_was_edited_is_refused(store: Store, tmp_path: Path) -> None:
    copy = as_once(store, version(store, "base_model"), tmp_path / "copy")
    history = store.folder("base_model", copy.version) / "report" / "training.jsonl"
    history.write_text(history.read_text().replace("1", "2"))
    done = jobs.run(job_of(store, copy, tmp_path / "proof"))
    assert done.code == EXIT_USER and "report/training.jsonl has changed since it was published" in done.output


def test_a_dpo_model_takes_its_reference_from_the_version(store: Store, tmp_path: Path) -> None:
    dpo = version(store, "dpo_model")
    done = jobs.run(job_of(store, dpo, tmp_path))
    assert done.code == 0, done.output
    assert answer(tmp_path).steps == 6
