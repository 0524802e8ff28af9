"""Data stages on a real Ray cluster of two nodes: the same bytes as on one machine."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.conftest import Pipeline
from training.data.text import near_duplicates
from training.errors import RecipeError, SourceError
from training.job import parts
from training.job.events import EventWriter
from training.job.parts import Part, Pool
from training.specs.execution import Execution
from training.stages import corpus, raw_corpus

ray = pytest.importorskip("ray", reason="ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")
WORDS = [f"{first}{second}" for first in ("ba", "ko", "li", "mu", "ne") for second in ("ro", "sa", "ti", "lan", "mer")]

OWN_CODE = """
from training.custom import document_filter, document_source


@document_source
def whole(path):
    yield path.read_text()


@document_filter
def not_three(document):
    return "of its own 3" not in document.text
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes with a core each."""
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "memory": 8 * 2**30, "object_store_memory": 10**8}
    )
    cluster.add_node(num_cpus=1, memory=8 * 2**30, object_store_memory=10**8)
    yield str(cluster.address)
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool and parts for little text: the work is the same, there is only less of it."""
    monkeypatch.setattr(parts, "_WORTH_A_POOL", 0)
    monkeypatch.setattr(raw_corpus, "_PART_BYTES", 60_000)
    monkeypatch.setattr(corpus, "_SMALL_RANGE", 100_000)
    monkeypatch.setattr(near_duplicates, "_BUCKET_BYTES", 50_000)


def write_sources(folder: Path) -> None:
    draw = random.Random(1)
    texts = ["\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(25)) for _ in range(300)]
    texts += [f"{text}\nand a last line {number}" for number, text in enumerate(texts[:40])] + texts[60:90]
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[number::8]))
        (folder / f"{number}.html").write_text(f"<article><p>{texts[number]}</p><p>Page {number}.</p></article>")
        (folder / f"{number}.own").write_text(f"{texts[number + 8]}\nof its own {number}")
    (folder.parent / "mine.py").write_text(OWN_CODE)


def test_a_cluster_makes_the_same_bytes(tmp_path: Path, address: str) -> None:
    write_sources(tmp_path / "sources")
    made, handler = {}, signal.getsignal(signal.SIGTERM)
    for name, execution in (("here", Execution(threads=1)), ("there", Execution(ray=address))):
        pipeline = Pipeline(tmp_path / name)
        pipeline.execution = execution
        files = {"code": tmp_path / "mine.py"}
        own = {"name": "own", "path": str(tmp_path / "sources" / "*.own"), "function": "whole"}
        sources = [{"name": "s", "path": str(tmp_path / "sources"), "exclude": ["*.own"]}, own]
        pipeline.run("raw_corpus", {"sources": sources}, files=files)
        limits: dict[str, Any] = {"heldout": 0.1, "max_line": 10_000, "max_characters": 1_200}
        limits["rules"] = {"filters": ["not_three"]}
        pipeline.run("corpus", limits, ("raw_corpus",), files)
        made[name] = [
            {path: entry for path, entry in pipeline.promoted(asset).files.items() if not path.startswith("report/")}
            for asset in ("raw_corpus", "corpus")
        ]
        assert len(made[name][1]) > 4, "several files of each split"
        assert pipeline.promoted("raw_corpus").metrics["documents"] == 370 + 8 + 8
        metrics = pipeline.promoted("corpus").metrics
        assert metrics["dropped_filter_not_three"] == 1
        assert metrics["dropped_near_duplicate"] > 20 and metrics["dropped_exact_duplicate"] > 20
    assert made["here"] == made["there"]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_the_parts_are_worked_on_by_both_nodes(tmp_path: Path, address: str) -> None:
    pool = Pool(tmp_path, Execution(ray=address), EventWriter(None))
    done = pool.run("nodes", raw_corpus_node, [Part(str(number), number, 1) for number in range(12)])
    assert [finished.result["number"] for finished in done] == list(range(12))
    assert len({finished.result["node"] for finished in done}) == 2


def test_a_cluster_that_is_too_small_is_one_message(tmp_path: Path, address: str) -> None:
    pool = Pool(tmp_path, Execution(ray=address, memory_megabytes=20_000), EventWriter(None))
    with pytest.raises(RecipeError, match=r"has 20\.0 GB of memory.* the largest has 8\.6 GB"):
        pool.run("nodes", raw_corpus_node, [Part(str(number), number, 1) for number in range(2)])


def test_errors_come_back_as_they_are(tmp_path: Path, address: str) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "good"}\n{"text": 5}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n')
    pipeline = Pipeline(tmp_path / "pipeline")
    pipeline.execution = Execution(ray=address)
    with pytest.raises(SourceError, match=r"a\.jsonl.*2"):
        pipeline.run("raw_corpus", {"sources": [{"name": "s", "path": str(tmp_path / "*.jsonl")}]})


def test_a_cluster_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    ray.shutdown()
    pool = Pool(tmp_path, Execution(ray="127.0.0.1:1"), EventWriter(None))
    with pytest.raises(RecipeError, match="no Ray cluster answers at 127.0.0.1:1"):
        pool.run("nodes", raw_corpus_node, [Part(str(number), number, 1) for number in range(2)])


def raw_corpus_node(number: int, folder: Path) -> dict[str, Any]:
    """Which node this is; it is busy until another one is, because a node may take a while to begin."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder.parent / f"node-{node}").touch()
    until = time.monotonic() + 120
    while len(list(folder.parent.glob("node-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return {"number": number, "node": node}
