"""Small real inputs and real jobs for the tests of the four trainers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.evidence import with_evidence
from tests.patience import Patience
from training.data.conversations.chat_template import write_templates
from training.data.tokens.byte_bpe import encode_texts, load_plain, train_bpe
from training.data.tokens.shards import TokenWriter
from training.job.events import EVENTS_FILE, EventReader
from training.job.fingerprint import fingerprint
from training.job.runner import main
from training.specs.artifacts import Certificate, Manifest, Promotion
from training.specs.execution import Execution
from training.specs.gates import Verdict
from training.specs.job import Input, Job
from training.specs.tokenizer import END_OF_TEXT, PAD, SPECIAL_TOKENS
from training.store.store import Store, file_entry

ROOT = Path(__file__).resolve().parents[2]
_SERVER = multiprocessing.get_context("forkserver")
RECIPE = "test"
VOCABULARY = 352
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
OPTIMIZER = {"learning_rate": 3e-3, "warmup_steps": 2}
SECTIONS: dict[str, dict[str, Any]] = {
    "base_model": {
        "architecture": ARCHITECTURE,
        "steps": 8,
        "batch_tokens": 512,
        "precision": "fp32",
        "optimizer": OPTIMIZER,
        "curriculum": [{"context": 32, "share": 0.5}, {"context": 64, "share": 0.5}],
        "weights": {"b": 2.0},
        "checkpoints": {"every_steps": 2, "keep": 2},
        "log_every": 2,
    },
    "sft_model": {
        "steps": 6,
        "context": 64,
        "batch_tokens": 256,
        "precision": "fp32",
        "optimizer": OPTIMIZER,
        "checkpoints": {"every_steps": 2, "keep": 2},
        "log_every": 2,
    },
    "dpo_model": {
        "steps": 6,
        "context": 64,
        "batch_pairs": 4,
        "precision": "fp32",
        "optimizer": OPTIMIZER,
        "checkpoints": {"every_steps": 2, "keep": 2},
        "log_every": 2,
    },
    "lora_model": {
        "steps": 6,
        "context": 64,
        "batch_tokens": 256,
        "precision": "fp32",
        "optimizer": OPTIMIZER,
        "rank": 2,
        "dropout": 0.1,
        "checkpoints": {"every_steps": 2, "keep": 2},
        "log_every": 2,
    },
}
INPUTS = {
    "base_model": ("packed_shards", "tokenizer"),
    "sft_model": ("base_model", "instruction_data", "packed_shards", "tokenizer"),
    "dpo_model": ("sft_model", "preference_data", "tokenizer"),
    "lora_model": ("dpo_model", "adapter_data", "tokenizer"),
}
_WORDS = (
    "path",
    "file",
    "read",
    "write",
    "text",
    "line",
    "join",
    "split",
    "open",
    "close",
    "list",
    "dict",
    "key",
    "value",
    "return",
    "import",
    "class",
    "self",
    "name",
    "index",
    "count",
    "size",
    "first",
    "last",
    "next",
    "item",
)


@dataclass(frozen=True)
class Finished:
    """What a job left behind."""

    code: int
    output: str
    attempt: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in EventReader(self.attempt / EVENTS_FILE).poll() if event["kind"] == kind]


def sentences(count: int, seed: int) -> list[str]:
    """Made-up lines of code-like words."""
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(_WORDS, k=chooser.randint(3, 14))) for _ in range(count)]


def publish(store: Store, asset: str, folder: Path, facts: dict[str, str] | None = None) -> Manifest:
    """Publish a folder as a version and promote it."""
    draft = Manifest(
        asset=asset,
        version="",
        stage=asset,
        recipe=RECIPE,
        identity=hashlib.sha256(asset.encode()).hexdigest(),
        fingerprint="",
        digest="",
        files={},
        inputs={},
        metrics={},
        facts=facts or {},
        section={},
        seed=0,
        started_at=0.0,
        seconds=0.0,
    )
    manifest = store.publish(folder, draft)
    promote(store, manifest)
    return manifest


def promote(store: Store, manifest: Manifest) -> None:
    """Certify and promote a version, as its gates would."""
    verdict = Verdict(name="test", passed=True, value=1.0, must_be=">=", threshold=0.0, reason="made for a test")
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
        evaluated_at=0.0,
        issued_at=0.0,
        issued_by="test",
    )
    certificate = with_evidence(store, certificate)
    store.write_certificate(certificate)
    store.promote(
        Promotion(
            asset=manifest.asset,
            version=manifest.version,
            digest=manifest.digest,
            certificate_digest=certificate.digest,
            promoted_at=0.0,
            promoted_by="test",
        )
    )


def publish_data(store: Store, work: Path, sources: Sequence[str] = ("a", "b")) -> None:
    """Publish a tokenizer, shards, conversations, pairs and adapter data; each source weighs one more than the last."""
    texts = sentences(400, seed=1)
    tokenizer = train_bpe(texts, VOCABULARY, 2)
    folder = work / "tokenizer"
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": END_OF_TEXT,
                "pad_token": PAD,
                "additional_special_tokens": [token for token in SPECIAL_TOKENS if token not in (END_OF_TEXT, PAD)],
            }
        )
    )
    write_templates(folder / "tokenizer")
    plain = load_plain(folder / "tokenizer" / "tokenizer.json")
    digest = file_entry(folder / "tokenizer" / "tokenizer.json").sha256
    publish(store, "tokenizer", folder, {"tokenizer": digest})
    end = plain.token_to_id(END_OF_TEXT)
    assert end is not None
    with TokenWriter(work / "shards", VOCABULARY, 5000) as writer:
        for tokens in encode_texts(plain, texts):
            writer.add(np.append(tokens, end))
        ids = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts])
        source = (np.arange(len(texts)) % len(sources)).astype(np.int32)
        writer.finish(source, ids, tuple(sources), dict.fromkeys(sources, 1.0), digest)
    publish(store, "packed_shards", work / "shards", {"tokenizer": digest})
    _publish_chat(store, work)


def _publish_chat(store: Store, work: Path) -> None:
    answers = sentences(60, seed=2)
    conversations = pa.table(
        {
            "id": [f"c{n:03d}" for n in range(40)],
            "messages": [
                json.dumps(
                    [
                        {"role": "user", "content": f"What does {answers[n].split()[0]} do?"},
                        {"role": "assistant", "content": answers[n][:40]},
                    ]
                )
                for n in range(40)
            ],
        }
    )
    for asset in ("instruction_data", "adapter_data"):
        (work / asset).mkdir()
        pq.write_table(conversations, work / asset / "train.parquet")
    pq.write_table(
        pa.table({"id": [f"d{n:03d}" for n in range(30)], "text": sentences(30, seed=3)}),
        work / "adapter_data" / "documents.parquet",
    )
    long = " ".join(_WORDS * 6)
    (work / "preference_data").mkdir()
    pairs = [
        {
            "id": f"p{n:03d}",
            "prompt": f"What does {answers[n].split()[0]} do?",
            "chosen": answers[n][:30],
            "rejected": long if n == 5 else answers[n + 20][:30],
        }
        for n in range(18)
    ]
    pq.write_table(pa.Table.from_pylist(pairs), work / "preference_data" / "train.parquet")
    for asset in ("instruction_data", "adapter_data", "preference_data"):
        publish(store, asset, work / asset)


def build_all(work: Path, section: dict[str, Any] | None = None) -> Store:
    """A store with all inputs and all four models, each made without interruption."""
    store = Store(str(work / "store"), RECIPE)
    publish_data(store, work)
    for asset in INPUTS:
        done = run(make_job(store, asset, work / "attempts" / asset, section))
        assert done.code == 0, done.output
        promote(store, published(store, work / "attempts" / asset))
    return store


def make_job(
    store: Store, asset: str, attempt: Path, section: dict[str, Any] | None = None, execution: Execution | None = None
) -> Path:
    """Write job.json for a training stage over the promoted inputs."""
    inputs = {}
    for name in INPUTS[asset]:
        pointer = store.promotion(name)
        assert pointer is not None, name
        inputs[name] = Input(
            asset=name, version=pointer.version, digest=pointer.digest, certificate=pointer.certificate_digest
        )
    merged = SECTIONS[asset] | (section or {})
    job = Job(
        stage=asset,
        asset=asset,
        recipe=RECIPE,
        identity=hashlib.sha256(json.dumps(merged).encode()).hexdigest(),
        fingerprint=fingerprint(f"training.stages.{asset}"),
        seed=7,
        section=merged,
        inputs=inputs,
        store=store.root,
        attempt=str(attempt),
        execution=execution or Execution(device="cpu", threads=1, micro_batch_tokens=256),
    )
    attempt.mkdir(parents=True, exist_ok=True)
    path = attempt / "job.json"
    path.write_text(job.model_dump_json())
    return path


def start(job: Path, processes: int = 1) -> list[BaseProcess]:
    """Start a job's ranks, as a launcher would, in processes forked from one that has imported the stages."""
    _SERVER.set_forkserver_preload([f"training.stages.{asset}" for asset in INPUTS])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: list[BaseProcess] = [
        _SERVER.Process(target=_rank, args=(str(job), rank, processes, port)) for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def wait(job: Path, ranks: list[BaseProcess]) -> Finished:
    """Wait for a job's end; a rank that fails takes the others with it."""
    patience = Patience(300)
    while any(rank.exitcode is None for rank in ranks) and not any(rank.exitcode for rank in ranks):
        assert not patience.is_over(), "the job does not end"
        time.sleep(0.02)
    for rank in ranks:
        patience = Patience(10)
        while rank.exitcode is None and not patience.is_over():
            rank.join(0.1)
        if rank.exitcode is None:
            rank.kill()
            rank.join()
    codes = [rank.exitcode for rank in ranks if rank.exitcode]
    return Finished(codes[0] if codes else 0, (job.parent / "output-0.txt").read_text(), job.parent)


def run(job: Path, processes: int = 1) -> Finished:
    """Run a job to its end."""
    return wait(job, start(job, processes))


def kill_at(job: Path, wait_for: str, processes: int = 1, number: int = signal.SIGKILL) -> Finished:
    """Run a job and send every rank a signal as soon as `wait_for` (a glob in the attempt folder) exists."""
    ranks = start(job, processes)
    patience = Patience(300)
    while not list(job.parent.glob(wait_for)):
        assert not patience.is_over(), f"no {wait_for} in time"
        assert all(rank.exitcode is None for rank in ranks), (job.parent / "output-0.txt").read_text()
        time.sleep(0.001)
    for rank in ranks:
        assert rank.pid is not None
        os.kill(rank.pid, number)
    return wait(job, ranks)


def _rank(job: str, rank: int, processes: int, port: int) -> None:
    """One rank of a job, with its output in a file."""
    os.setsid()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    output = os.open(Path(job).parent / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(main([job]))


def published(store: Store, attempt: Path) -> Manifest:
    """The version that a job published."""
    result = json.loads((attempt / "result.json").read_text())
    return store.manifest(result["asset"], result["version"])


def environment() -> dict[str, str]:
    """The environment of a job started by its command."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}


def wait_for_step(job: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a job's events tell of a step."""
    patience = Patience(120)
    while not any(event["step"] >= step for event in Finished(0, "", job.parent).events("metrics")):
        assert process.poll() is None, "the job ended before it trained"
        assert not patience.is_over(), "the job does not train"
        time.sleep(0.05)


def copy_version(store: Store, source: Manifest, asset: str, work: Path) -> Manifest:
    """Publish one asset's files as another asset's version."""
    shutil.copytree(store.folder(source.asset, source.version), work, ignore=shutil.ignore_patterns("manifest.json"))
    return publish(store, asset, work, dict(source.facts))
