"""Out of memory, divergence, a full disk: the training goes on, or says what to do, and no model is silently bad."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.jobs.launcher import JobRefused, open_launcher, run_job
from tests.chaos.trainings import Trainings, read_job
from tests.integration import training_jobs as jobs
from tests.promises import Promise
from training.data.tokens.byte_bpe import encode_texts, load_plain
from training.data.tokens.shards import TokenWriter
from training.specs.execution import Execution, Launcher
from training.specs.tokenizer import END_OF_TEXT
from training.store.store import Store, file_entry

MEGABYTE = 1_000_000
# A row of 1024 tokens takes about 340 MB in these wide layers.
WIDE = {
    "steps": 3,
    "batch_tokens": 4096,
    "curriculum": [{"context": 1024, "share": 1.0}],
    "checkpoints": {"every_steps": 2},
    "architecture": jobs.ARCHITECTURE | {"intermediate_size": 8192, "max_position_embeddings": 1024},
}
LEARNS = {
    "steps": 60,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    "log_every": 1,
    "checkpoints": {"every_steps": 10},
}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    work = tmp_path_factory.mktemp("trainings")
    store = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(store, work)
    return Trainings(store, work)


@dataclass
class Shortage:
    """Gives every start of a job so much memory beyond what its libraries took."""

    megabytes: int
    messages: list[str] = field(default_factory=list)

    def listen(self, events: list[dict[str, Any]]) -> None:
        """Set the limit when the libraries are loaded, before the model is built."""
        self.messages += [event["message"] for event in events if event["kind"] == "log"]
        if any(event["kind"] == "phase" and event["name"] == "pack" for event in events):
            (job,) = [
                one
                for one in psutil.Process().children(recursive=True)
                if "training.run" in one.cmdline() and "training.job.supervisor" not in one.cmdline()
            ]
            limit = job.memory_info().data + self.megabytes * MEGABYTE
            job.rlimit(resource.RLIMIT_DATA, (limit, limit))


def launch(job: Path, listen: Any) -> None:
    run_job(open_launcher(Launcher()), read_job(job), listen, forward_output=False)


@pytest.mark.promise(
    "Out of memory: the job starts again with half the micro-batch and the same batch, until it fits; "
    "the losses stay the same within 1e-5"
)
def test_a_shortage_of_memory(promise: Promise, trainings: Trainings) -> None:
    alone = trainings.job("base_model", (1, 0, "fp32"), WIDE, micro=1024)
    assert jobs.run(alone).code == 0
    expected = trainings.rows(alone, "base_model")
    for trial in promise.trials(quick=1, full=5):
        with trial:
            job = trainings.job("base_model", (1, 0, "fp32"), WIDE, micro=4096)
            shortage = Shortage(trial.random.randint(900, 1100))
            launch(job, shortage.listen)
            said = [message for message in shortage.messages if "out of memory at a micro-batch" in message]
            assert "out of memory at a micro-batch of 4096 tokens" in said[0], shortage.messages
            assert "with 2048 tokens and 2 times the accumulation; the batch stays the same" in said[0]
            assert read_job(job).execution.micro_batch_tokens <= 2048
            for row, one in zip(trainings.rows(job, "base_model"), expected, strict=True):
                assert row["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.promise(
    "Out of memory at a micro-batch of one row: the job is refused, and the message names the largest "
    "tensors and what to change"
)
def test_a_row_that_does_not_fit(promise: Promise, trainings: Trainings) -> None:
    for trial in promise.trials(quick=1, full=3):
        with trial:
            job = trainings.job("base_model", (1, 0, "fp32"), WIDE, micro=1024)
            with pytest.raises(JobRefused) as error:
                launch(job, Shortage(trial.random.randint(120, 180)).listen)
            assert "out of memory at a micro-batch of one row (1024 tokens)" in str(error.value)
            assert "the activations of 2 layers [2, 1024, 8192]" in str(error.value)
            assert "Use a shorter context" in str(error.value)


def poisoned(work: Path) -> Store:
    """A store whose text says one thing again and again, but for a few documents of noise."""
    store = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(store, work)
    pointer = store.promotion("tokenizer")
    assert pointer is not None
    path = store.folder("tokenizer", pointer.version) / "tokenizer" / "tokenizer.json"
    plain, digest = load_plain(path), file_entry(path).sha256
    end, noise = plain.token_to_id(END_OF_TEXT), np.random.default_rng(0)
    documents = [np.append(tokens, end) for tokens in encode_texts(plain, ["path file read write text line"] * 5000)]
    documents += [np.append(noise.integers(10, jobs.VOCABULARY, 60), end) for _ in range(10)]
    with TokenWriter(work / "poisoned", jobs.VOCABULARY, 5000) as writer:
        for tokens in documents:
            writer.add(tokens)
        ids = noise.integers(0, 256, (len(documents), 32), np.uint8)
        writer.finish(np.zeros(len(documents), np.int32), ids, ("a",), {"a": 1.0}, digest)
    jobs.publish(store, "packed_shards", work / "poisoned", {"tokenizer": digest})
    return store


@pytest.mark.promise(
    "A loss that leaps: the job goes back, skips the batches that it names, and ends in the same "
    "bytes as one that skipped them from the start"
)
def test_a_leap(promise: Promise, tmp_path: Path) -> None:
    trainings = Trainings(poisoned(tmp_path), tmp_path)
    for trial in promise.trials(quick=1, full=5):
        with trial:
            rule = {
                "action": "rollback",
                "spike": 2.0 + trial.random.random() / 2,
                "window": 10,
                "skip": trial.random.randint(1, 3),
                "max_rollbacks": 20,
            }
            section = LEARNS | {"divergence": rule}
            job, messages = trainings.job("base_model", (1, 0, "fp32"), section), list[str]()
            launch(
                job,
                lambda events, messages=messages: messages.extend(
                    event["message"] for event in events if event["kind"] == "log"
                ),
            )
            said = [message for message in messages if "skipping the batches" in message]
            record = json.loads((job.parent / "rollbacks.json").read_text())
            assert said and len(said) == record["count"]
            named = {int(number) for message in said for number in message.split("batches ")[1].split(", ")}
            assert named == set(record["skipped"])
            warned = trainings.job("base_model", (1, 0, "fp32"), section)
            (warned.parent / "rollbacks.json").write_text(json.dumps(record))
            assert jobs.run(warned).code == 0
            assert trainings.rows(warned, "base_model") == trainings.rows(job, "base_model")
            digests = {jobs.published(trainings.store, one.parent).digest for one in (job, warned)}
            assert len(digests) == 1


@pytest.mark.promise("A loss that is not a number stops the job, before a checkpoint or a model holds it")
def test_not_a_number(promise: Promise, trainings: Trainings) -> None:
    for trial in promise.trials(quick=1, full=5):
        with trial:
            rate = 10.0 ** trial.random.randint(12, 30)
            section = LEARNS | {
                "optimizer": {"learning_rate": rate, "warmup_steps": 0, "clip_norm": 1e30},
                "checkpoints": {"every_steps": 1},
                "log_every": 10,
            }
            job = trainings.job("base_model", (1, 0, "fp32"), section)
            with pytest.raises(JobRefused, match="(the loss|norm) became (nan|inf) at step"):
                launch(job, lambda events: None)
            assert not (job.parent / "result.json").exists()
            for progress in (job.parent / "checkpoints").glob("step-*/progress.json"):
                assert np.isfinite(json.loads(progress.read_text())["losses"]).all()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 60 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("this account may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.promise(
    "A disk that is full in the middle of a training: one clear error, earlier checkpoints stay, and "
    "with room again the job ends in the same bytes"
)
def test_a_full_disk(promise: Promise, trainings: Trainings, disk: Path) -> None:
    section = {"steps": 120, "checkpoints": {"every_steps": 10}, "log_every": 1}
    undisturbed = trainings.job("base_model", (1, 0, "fp32"), section)
    assert jobs.run(undisturbed).code == 0
    execution = Execution(device="cpu", threads=1, micro_batch_tokens=128)
    for trial in promise.trials(quick=1, full=10):
        with trial:
            job = jobs.make_job(
                trainings.store,
                "base_model",
                disk / f"attempt-{trial.number}",
                {"precision": "fp32"} | section,
                execution,
            )
            full = disk / "full"
            step = trial.random.randint(15, 60)

            def fill(events: list[dict[str, Any]], full: Path = full, step: int = step) -> None:
                if not full.exists() and any(event.get("step", 0) >= step for event in events):
                    fill_up(full)

            with pytest.raises(JobRefused, match=r"[Mm]ake room and start it again"):
                launch(job, fill)
            assert list((job.parent / "checkpoints").glob("step-*/manifest.json")), "an earlier one stays"
            full.unlink()
            launch(job, lambda events: None)
            digests = {jobs.published(trainings.store, one.parent).digest for one in (job, undisturbed)}
            assert len(digests) == 1
            assert trainings.rows(job, "base_model") == trainings.rows(undisturbed, "base_model")


@pytest.mark.promise("A disk that is too small for the checkpoints is refused before anything is trained")
def test_a_small_disk(promise: Promise, trainings: Trainings, disk: Path) -> None:
    execution = Execution(device="cpu", threads=1, micro_batch_tokens=128)
    for trial in promise.trials(quick=1, full=3):
        with trial:
            keep = trial.random.randint(200, 1000)
            job = jobs.make_job(
                trainings.store,
                "base_model",
                disk / f"attempt-{trial.number}",
                {"steps": 2000, "checkpoints": {"every_steps": 1, "keep": keep}},
                execution,
            )
            with pytest.raises(JobRefused, match=rf"training will write about .* MB .*\({keep + 1} checkpoints"):
                launch(job, lambda events: None)
            assert '"kind": "metrics"' not in (job.parent / "events.jsonl").read_text()
