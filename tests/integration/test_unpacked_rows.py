"""A model whose documents would see each other in a row trains on one document a row, and resumes in the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration import training_jobs as jobs
from training.store.store import Store

OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 128,
}


def test_opt_trains_unpacked_and_says_so(tmp_path: Path) -> None:
    """Killed in its export it goes on from the checkpoint of the last step, which is kept for good."""
    store = Store(str(tmp_path / "store"), jobs.RECIPE)
    jobs.publish_data(store, tmp_path)
    section = {"architecture": OPT, "log_every": 1, "checkpoints": {"every_steps": 3, "keep": 1, "keep_every": 4}}
    whole = jobs.run(jobs.make_job(store, "base_model", tmp_path / "whole", section))
    assert whole.code == 0, whole.output
    made = jobs.published(store, tmp_path / "whole")
    assert made.facts["rows"].startswith("one document each, padded: documents in one row see each other")
    card = store.folder("base_model", made.version) / "model" / "README.md"
    assert "| rows | one document each, padded" in card.read_text()
    assert any("of the places in the rows hold a token" in event["message"] for event in whole.events("log"))
    kept = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000004", "step-00000008"]

    job = jobs.make_job(store, "base_model", tmp_path / "killed", section)
    killed = jobs.kill_at(job, "checkpoints/step-00000008")
    assert killed.code != 0
    again = jobs.run(job)
    assert again.code == 0, again.output
    assert any(event["message"].startswith("resumed from the checkpoint of step 8") for event in again.events("log"))
    assert jobs.published(store, tmp_path / "killed").digest == made.digest
    losses = json.loads((tmp_path / "killed" / "checkpoints" / "step-00000008" / "progress.json").read_text())["losses"]
    assert len(losses) == 8
