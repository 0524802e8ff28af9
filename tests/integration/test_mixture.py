"""A job counts what it read of each source: the same after a kill and under two processes, and as it was asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration import training_jobs as jobs
from training.data.tokens.shards import TokenShards
from training.specs.execution import Execution
from training.specs.mixture import MIXTURE_FILE, Mixture
from training.store.store import Store

# Of 29,856 parameters: 3,882 tokens, which are 8 steps of 512.
SECTION = {"tokens_per_parameter": 0.13, "mixture": {"a": 0.25, "b": 0.75}, "weights": {}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    work = tmp_path_factory.mktemp("store")
    made = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(made, work)
    return made


@pytest.fixture(autouse=True)
def _no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's budget is not the usual number of steps."""
    usual = {name: value for name, value in jobs.SECTIONS["base_model"].items() if name != "steps"}
    monkeypatch.setitem(jobs.SECTIONS, "base_model", usual)


def test_what_was_read_is_counted_exactly(store: Store, tmp_path: Path) -> None:
    job = jobs.make_job(store, "base_model", tmp_path / "one", SECTION)
    jobs.kill_at(job, "checkpoints/step-00000004/manifest.json")
    plans = tmp_path / "one" / "packing" / "plans.json"
    made = plans.stat().st_mtime_ns
    done = jobs.run(job)
    assert done.code == 0, done.output
    assert plans.stat().st_mtime_ns == made, "the plans of before the kill are read again"

    execution = Execution(device="cpu", threads=1, processes=2, micro_batch_tokens=256)
    two = jobs.make_job(store, "base_model", tmp_path / "two", SECTION, execution)
    assert jobs.run(two, 2).code == 0

    manifest = jobs.published(store, tmp_path / "one")
    folder = store.folder("base_model", manifest.version)
    mixture = Mixture.model_validate_json((folder / MIXTURE_FILE).read_bytes())
    of_two = store.folder("base_model", jobs.published(store, tmp_path / "two").version)
    assert Mixture.model_validate_json((of_two / MIXTURE_FILE).read_bytes()) == mixture

    pointer = store.promotion("packed_shards")
    assert pointer is not None
    shards = TokenShards(store.folder("packed_shards", pointer.version))
    assert sum(source.held for source in mixture.sources) == shards.meta.tokens
    assert mixture.error({"a": 0.25, "b": 0.75}) < 0.06  # 96 rows, in a block of 1,024 that is shuffled
    assert 0.85 * manifest.metrics["tokens"] < mixture.tokens < manifest.metrics["tokens"]
    assert manifest.metrics["steps"] == 8

    rows = [json.loads(line) for line in (folder / "report" / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["share/a"] == mixture.shares()["a"]
    notes = [event["note"] for event in done.events("progress") if event["unit"] == "steps"]
    assert any(f"b {mixture.shares()['b']:.1%}" in note for note in notes)
    told = [event["message"] for event in done.events("log")]
    assert any(message.startswith("trains for 8 steps of 512 tokens") for message in told)

    (a, b) = mixture.sources
    for card in (folder / "report" / "card.md", folder / "model" / "README.md"):
        assert f"| a | {a.tokens:,} | {a.held:,} | {a.epochs:.3f} | {mixture.shares()['a']:.2%} |" in card.read_text()
        assert f"| b | {b.tokens:,} | {b.held:,} | {b.epochs:.3f} |" in card.read_text()
