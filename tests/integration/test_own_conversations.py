"""Trainings on conversations and pairs of a user's own alone, as real jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration import training_jobs
from tests.integration.training_jobs import make_job, promote, publish, publish_data, published, run
from training.data.conversations.mixing import (
    MIXED_CONVERSATION_SCHEMA,
    MIXED_PAIR_SCHEMA,
    gathered_conversation,
    gathered_pair,
)
from training.data.tables import CORPUS_SCHEMA, write_table
from training.store.store import Store

INPUTS = {
    "base_model": ("packed_shards", "tokenizer"),
    "sft_model": ("base_model", "instruction_data", "tokenizer"),
    "dpo_model": ("sft_model", "preference_data", "tokenizer"),
    "lora_model": ("sft_model", "adapter_data", "tokenizer"),
}


def _talk(*texts: str) -> str:
    roles = ("user", "assistant")
    return json.dumps([_message(roles[place % 2], text) for place, text in enumerate(texts)])


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text, **({"train": True} if role == "assistant" else {})}


def _publish_own(store: Store, work: Path) -> None:
    told = {"tools": "", "source": "own", "format": "messages"}
    rows = [
        gathered_conversation(
            {
                "id": f"c{number:03d}",
                "where": f"a:{number}",
                "messages": _talk(f"path {number}?", "read the file"),
                **told,
            }
        )
        for number in range(20)
    ]
    long = _talk("path " * 60, "read", "and then?", "write the text")
    rows.append(gathered_conversation({"id": "d", "where": "a:20", "messages": long, **told}))
    text = json.dumps([_message("assistant", "open close list " * 20)])
    rows.append(gathered_conversation({"id": "e", "where": "a:21", "messages": text, **told, "format": "plain_text"}))
    for asset in ("instruction_data", "adapter_data"):
        (work / asset).mkdir(parents=True)
        write_table(work / asset / "train.parquet", rows, MIXED_CONVERSATION_SCHEMA)
    write_table(work / "adapter_data" / "documents.parquet", [], CORPUS_SCHEMA)

    pairs = [
        gathered_pair(
            {
                "id": f"p{number}",
                "prompt": json.dumps([_message("user", f"path {number}?")]),
                "chosen": json.dumps([_message("assistant", "read the file")]),
                "rejected": json.dumps([_message("assistant", "close it")]),
                "source": "own",
                "where": f"b:{number}",
                "format": "preference",
            }
        )
        for number in range(8)
    ]
    (work / "preference_data").mkdir()
    write_table(work / "preference_data" / "train.parquet", pairs, MIXED_PAIR_SCHEMA)
    for asset in ("instruction_data", "adapter_data", "preference_data"):
        publish(store, asset, work / asset)


def test_models_are_trained_on_own_conversations_and_pairs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asset, inputs in INPUTS.items():
        monkeypatch.setitem(training_jobs.INPUTS, asset, inputs)
    store = Store(str(tmp_path / "store"), training_jobs.RECIPE)
    publish_data(store, tmp_path / "data")
    _publish_own(store, tmp_path / "own")

    for asset in INPUTS:
        section = {"replay": 0.0} if asset == "sft_model" else {}
        done = run(make_job(store, asset, tmp_path / asset, section))
        assert done.code == 0, done.output
        manifest = published(store, tmp_path / asset)
        promote(store, manifest)
        if asset in ("sft_model", "lora_model"):
            report = json.loads((store.folder(asset, manifest.version) / "report" / "conversations.json").read_text())
            assert report["conversations"] == 22
            assert report["lost their first turns to fit"] == 1
            assert manifest.metrics["dropped_conversations"] == 0
    assert manifest.inputs.keys() == {"sft_model", "adapter_data", "tokenizer"}
