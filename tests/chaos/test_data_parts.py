"""Data stages that are killed: they go on with the parts that are missing, and make what an undisturbed one makes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.promises import Promise
from tests.unit.data.conftest import Pipeline
from training.job.fingerprint import fingerprint
from training.job.parts import PARTS
from training.specs.base import digest_of
from training.specs.execution import Execution
from training.specs.job import Job

# A pool and parts for little text: the work is the same, there is only less of it.
_RUN = """
import sys
from training.job import parts
from training.stages import corpus, raw_corpus
from training.data.text import near_duplicates
parts._WORTH_A_POOL = 0
raw_corpus._PART_BYTES = 60_000
corpus._SMALL_RANGE = 100_000
near_duplicates._BUCKET_BYTES = near_duplicates._BAND_BYTES = 50_000
from training.job.runner import main
sys.exit(main(sys.argv[1:]))
"""
WORDS = [f"{first}{second}" for first in ("ba", "ko", "li", "mu", "ne") for second in ("ro", "sa", "ti", "lan", "mer")]


def text_of(number: int) -> str:
    draw = random.Random(number)
    words = draw.choices(WORDS, k=300)
    return "\n".join(" ".join(words[at : at + 12]) for at in range(0, 300, 12))


def edited(text: str, number: int) -> str:
    return f"{text}\nand a last line {number}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files with twins and copies among their rows, in two packings."""
    folder = tmp_path_factory.mktemp("sources")
    texts = [text_of(number) for number in range(400)]
    texts += [edited(text, number) for number, text in enumerate(texts[:60])] + texts[100:140]
    random.Random(0).shuffle(texts)
    for number in range(12):
        rows = [json.dumps({"text": text}) + "\n" for text in texts[number::12]]
        (folder / f"{number:02d}.jsonl").write_text("".join(rows))
    return folder


def job_of(pipeline: Pipeline, stage: str, section: dict[str, Any], inputs: tuple[str, ...], threads: int) -> Path:
    """A job file of a stage, in an attempt of its own."""
    pipeline.attempts += 1
    attempt = pipeline.root / "attempts" / f"{pipeline.attempts:03d}"
    attempt.mkdir(parents=True)
    job = Job(
        stage=stage,
        asset=stage,
        recipe="unit",
        identity=digest_of([stage, pipeline.attempts]),
        fingerprint=fingerprint(f"training.stages.{stage}"),
        seed=0,
        section=section,
        inputs={name: pipeline._input(name) for name in inputs},
        store=str(pipeline.root / "store"),
        attempt=str(attempt),
        execution=Execution(threads=threads),
    )
    path = attempt / "job.json"
    path.write_text(job.model_dump_json())
    return path


def start(job: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _RUN, str(job)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(job: Path) -> dict[str, str]:
    """Run a job to its end; digests of the files that it published, reports left out."""
    process = start(job)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = json.loads((job.parent / "result.json").read_text())
    manifest = json.loads(next((job.parents[2] / "store").rglob(f"{result['version']}/manifest.json")).read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items() if not name.startswith("report/")}


def done_parts(job: Path) -> Iterator[Path]:
    """The records of the parts that have their name; one that is `.unfinished` was killed just before its renaming."""
    return (path for path in (job.parent / PARTS).glob("*/*/record.json") if path.parent.suffix != ".unfinished")


def kill_after(job: Path, count: int) -> int:
    """Kill a job, its workers left to themselves, when it has so many finished parts; how many it has then."""
    process = start(job)
    while process.poll() is None and len(list(done_parts(job))) < count:
        time.sleep(0.01)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return len(list(done_parts(job)))


@pytest.mark.promise("A data stage that is killed goes on with the parts that are missing, and ends in the same bytes")
def test_kill(promise: Promise, tmp_path: Path, sources: Path) -> None:
    pipeline = Pipeline(tmp_path)
    raw = {"sources": [{"name": "s", "path": str(sources)}]}
    limits = {"heldout": 0.1, "max_line": 10_000, "max_characters": 1_200}
    undisturbed = finish(job_of(pipeline, "raw_corpus", raw, (), threads=1))
    pipeline.promote(pipeline.manifest(tmp_path / "attempts" / "001"))
    corpus = finish(job_of(pipeline, "corpus", limits, ("raw_corpus",), threads=1))
    assert len(corpus) > 4, "several files of each split"

    for trial in promise.trials(quick=2, full=20):
        with trial:
            of_corpus = ("corpus", limits, ("raw_corpus",))
            stage, section, inputs = of_corpus if trial.number % 2 else ("raw_corpus", raw, ())
            job = job_of(pipeline, stage, section, inputs, threads=trial.random.choice((2, 3)))
            had = 0
            for _ in range(trial.random.randint(1, 3)):
                had = kill_after(job, had + trial.random.randint(1, 12))
            times = {path: path.stat().st_mtime_ns for path in done_parts(job)}
            assert finish(job) == (corpus if stage == "corpus" else undisturbed)
            assert all(path.stat().st_mtime_ns == time_ for path, time_ in times.items()), "a part was made again"
