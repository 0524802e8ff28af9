"""Inputs that are damaged at random, and files that would run code if they could."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import resource
import shutil
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from pipeline.recipes.loader import load_recipe
from tests.conftest import ROOT
from tests.integration import audited
from tests.integration import hostile_models as models
from tests.integration import training_jobs as jobs
from tests.promises import Promise
from training import chat
from training.data.sources.bad_rows import BadRows
from training.data.sources.reading import READING_MEMORY, read_source
from training.errors import UserError
from training.job import runner as stages
from training.job.bounded_memory import bounded_memory
from training.job.runner import load_job
from training.model_folder import load_model
from training.specs.artifacts import Certificate, Promotion
from training.specs.execution import Execution
from training.specs.job import Job
from training.specs.raw_corpus import Source
from training.store.store import Store
from training.tokenizer_folder import load_tokenizer

MOST_MEMORY = 3 * 2**30
SECONDS = 60
_TEXT = "".join(f"Line {number} of a text that is worth to be kept: na\u00efve, \u65e5.\n" for number in range(200))
_ROWS = "".join(json.dumps({"text": f"{number} {_TEXT[:200]}", "number": number}) + "\n" for number in range(100))


def read_sources(path: Path) -> None:
    with bounded_memory(READING_MEMORY):
        for _ in read_source(Source(name="s", path=str(path)), BadRows("fail", path.parent / "skipped"), path.parent):
            pass


def read_model(path: Path) -> None:
    model, tokenizer = load_model(path.parent), load_tokenizer(path.parent)
    tokenizer("The path of the file.")
    assert isinstance(model, torch.nn.Module)


def read_records(path: Path) -> None:
    store = Store(str(path.parents[2]), "test")
    store.promotion("corpus")
    store.certificate("corpus", "1")


READERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "text": ("a.txt", read_sources),
    "HTML": ("a.html", read_sources),
    "JSON lines": ("a.jsonl", read_sources),
    "gzip": ("a.jsonl.gz", read_sources),
    "zstd": ("a.txt.zst", read_sources),
    "bzip2": ("a.txt.bz2", read_sources),
    "xz": ("a.jsonl.xz", read_sources),
    "JSON": ("a.json", read_sources),
    "CSV": ("a.csv", read_sources),
    "parquet": ("a.parquet", read_sources),
    "recipe": ("mine.yaml", lambda path: load_recipe(str(path)) and None),
    "job": ("job.json", lambda path: load_job(path) and None),
    "pointer": ("test/corpus/promoted.json", read_records),
    "weights": ("model/model.safetensors", read_model),
    "configuration": ("model/config.json", read_model),
    "tokenizer": ("model/tokenizer.json", read_model),
    "tokenizer's configuration": ("model/tokenizer_config.json", read_model),
    "generation's configuration": ("model/generation_config.json", read_model),
}


def read(kind: str, path: str) -> tuple[str, int]:
    """What came of reading a file: nothing, the message that refused it, or a traceback; and the peak of memory."""
    try:
        READERS[kind][1](Path(path))
        told = ""
    except UserError as error:
        told = str(error)
    except BaseException:  # a panic of a library in Rust is no Exception
        told = traceback.format_exc()
    return told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut off, or some bytes or one block of it changed, or a block twice."""
    at, length = chance.randrange(len(data)), chance.randint(1, 64)
    kind = chance.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + chance.randbytes(length) + data[at + length :]
    if kind == 2:
        return data[:at] + data[at : at + length] + data[at:]
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(data))
        changed[place] = changed[place] ^ 1 << chance.randrange(8) if kind == 3 else chance.randrange(256)
    return bytes(changed)


def write_samples(folder: Path) -> None:
    """A good file of every kind."""
    (folder / "a.txt").write_text(_TEXT)
    (folder / "a.html").write_text("".join(f"<p>{line}</p>" for line in _TEXT.splitlines()))
    (folder / "a.jsonl").write_text(_ROWS)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(_ROWS.encode()))
    (folder / "a.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(_TEXT.encode()))
    (folder / "a.txt.bz2").write_bytes(bz2.compress(_TEXT.encode()))
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(_ROWS.encode()))
    (folder / "a.json").write_text(json.dumps([json.loads(row) for row in _ROWS.splitlines()], indent=1))
    (folder / "a.csv").write_text("number,text\n" + "".join(f'{number},"{_TEXT[:200]}"\n' for number in range(100)))
    table = pa.table({"text": _TEXT.splitlines(), "number": range(200)})
    pq.write_table(table, folder / "a.parquet", row_group_size=70)
    shipped = (ROOT / "assets_config" / "tiny.yaml").read_text()
    (folder / "mine.yaml").write_text(shipped.replace("\nname: tiny\n", "\nname: mine\n"))
    (folder / "job.json").write_text(
        Job(
            stage="corpus",
            asset="corpus",
            recipe="test",
            identity="0",
            fingerprint="0",
            seed=0,
            section={"a": [1, {"b": None}]},
            store="s",
            attempt="a",
        ).model_dump_json(indent=1)
    )
    certificate = Certificate(
        asset="corpus",
        version="1",
        artifact_digest="0",
        suite_digest="",
        verdicts=(),
        evaluator_fingerprint="",
        evaluation_version="",
        report_digest="",
        items_digest="",
        thresholds_digest="",
        evaluated_at=1.0,
        issued_at=1.0,
        issued_by="test",
    )
    store = Store(str(folder), "test")
    store.write_certificate(certificate)
    (folder / "test" / "corpus" / "promoted.json").write_text(
        Promotion(
            asset="corpus", version="1", digest="0", certificate_digest="0", promoted_at=1.0, promoted_by="test"
        ).model_dump_json(indent=1)
    )
    models.model_folder(folder / "model")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder


@pytest.fixture(scope="module")
def reader() -> Iterator[ProcessPoolExecutor]:
    """Another process: a library that crashes ends that one."""
    with ProcessPoolExecutor(1, audited.server()) as pool:
        yield pool


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.promise("A damaged {kind} is read or refused with one message, in bounded memory and time")
def test_a_damaged_file(
    promise: Promise, kind: str, samples: Path, tmp_path: Path, reader: ProcessPoolExecutor
) -> None:
    name = READERS[kind][0]
    good = (samples / name).read_bytes()
    shutil.copytree(samples, tmp_path / "copy")
    path = tmp_path / "copy" / name
    assert reader.submit(read, kind, str(path)).result(SECONDS)[0] == ""
    refused = 0
    for trial in promise.trials(quick=3, full=200):
        with trial:
            path.write_bytes(damaged(good, trial.random))
            told, peak = reader.submit(read, kind, str(path)).result(SECONDS)
            refused += bool(told)
            assert "Traceback" not in told, told
            assert not told or path.name in told or kind == "weights"
            assert len(told) < 30_000
            assert peak < MOST_MEMORY
    assert refused or kind in ("text", "CSV", "HTML")


_CODE = [
    models.pickle_beside,
    models.training_arguments,
    models.stray_pickle,
    models.model_code,
    models.model_code_of_an_unknown_kind,
    models.tokenizer_code,
    models.explicit_weights,
    models.adapter,
    models.distributed_checkpoint,
    models.index_of_a_pickle,
    models.hub_kernel,
    models.custom_generation,
]


@pytest.mark.parametrize("reading", ["evaluation", "chat"])
@pytest.mark.promise("No pickle and no code of a model folder is run: {reading}")
def test_code_in_a_model_folder(promise: Promise, reading: str, samples: Path, tmp_path: Path) -> None:
    for trial in promise.trials(quick=2, full=50):
        with trial:
            folder = tmp_path / str(trial.number)
            shutil.copytree(samples / "model", folder / "artifact" / "model")
            for make in trial.random.sample(_CODE, trial.random.randint(1, 3)):
                if (folder / "artifact" / "model" / models.WEIGHTS).exists():
                    make(folder / "artifact" / "model", folder / models.CANARY)
            if reading == "evaluation":
                main, arguments = models.evaluated, [str(folder / "artifact")]
            else:
                main, arguments = chat.main, [str(folder / "artifact" / "model"), "Hello"]
            told = audited.run(main, arguments, folder / "child", folder / "artifact")
            assert told.code == 2, told.output
            assert told.of("run", "pickle", "process", "network", "write") == []
            assert not list(folder.rglob(models.CANARY))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A store with its data, and the attempt of a job that was killed once it had checkpoints."""
    work = tmp_path_factory.mktemp("interrupted")
    store = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(store, work)
    job = jobs.make_job(store, "base_model", work / "attempt", _SECTION, _EXECUTION)
    jobs.kill_at(job, "checkpoints/step-00000004/manifest.json")
    return store, work / "attempt"


_SECTION = {"steps": 16}
_EXECUTION = Execution(device="cpu", threads=1, micro_batch_tokens=256, zero_stage=1)
_TRUSTED = ("torch.", "collections.", "numpy.", "_codecs.", "builtins.", "deepspeed.")


@pytest.mark.promise("Training, resume and export load no pickle but those of a verified checkpoint")
def test_pickles_of_a_training_job(promise: Promise, interrupted: tuple[Store, Path], tmp_path: Path) -> None:
    store, attempt = interrupted
    for trial in promise.trials(quick=2, full=20):
        with trial:
            tampered = trial.number % 2 == 0
            folder = tmp_path / str(trial.number)
            job = jobs.make_job(store, "base_model", folder / "attempt", _SECTION, _EXECUTION)
            for checkpoint in attempt.glob("checkpoints/step-*"):
                copy = folder / "attempt" / "checkpoints" / checkpoint.name
                shutil.copytree(checkpoint, copy)
                pickles = sorted(path for path in copy.rglob("*") if path.suffix in (".pt", ".pth", ".bin"))
                if tampered:
                    torch.save(models.Payload(folder / models.CANARY), trial.random.choice(pickles))
            for stray in ("evil.pt", "checkpoints/latest.pt", "out/model/pytorch_model.bin", "recut/evil.pt"):
                (folder / "attempt" / stray).parent.mkdir(parents=True, exist_ok=True)
                torch.save(models.Payload(folder / models.CANARY), folder / "attempt" / stray)
            told = audited.run(
                stages.main, [str(job)], folder / "child", folder / "attempt", [folder / "attempt", Path(store.root)]
            )
            assert told.code == 0, told.output
            assert not list(folder.rglob(models.CANARY))
            assert told.of("run", "process", "network", "write") == []
            assert ("resumed from the checkpoint" in (folder / "attempt" / "events.jsonl").read_text()) != tampered
            # What numba has just compiled names the type of what it returns by a pickle, in memory.
            found = [name for name in told.of("pickle") if name != "numpy.ndarray"]
            assert bool(found) != tampered, found
            assert all(name.startswith(_TRUSTED) for name in found), found
