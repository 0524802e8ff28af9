"""Every architecture through the whole chain: imported, then SFT, DPO and an adapter, as real jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.foreign import CHATML, byte_level, files_of, save_tokenizer, saved, tiny_model
from tests.integration import training_jobs
from tests.integration.training_jobs import make_job, promote, publish, published, run
from tests.unit.engine.test_architectures import ARCHITECTURES, NOT_ISOLATED
from training.data.conversations.mixing import (
    MIXED_CONVERSATION_SCHEMA,
    MIXED_PAIR_SCHEMA,
    gathered_conversation,
    gathered_pair,
)
from training.data.tables import CORPUS_SCHEMA, write_table
from training.data.tokens.foreign_tokenizer import read_foreign
from training.evaluation.exported import answer, change_cosine, parent_ratio, read_probe
from training.evaluation.models import LoadedModel
from training.model_folder import load_model
from training.specs.evidence import Estimate
from training.store.store import Store, file_entry
from training.tokenizer_folder import load_tokenizer

INPUTS = {
    "base_model": ("tokenizer",),
    "sft_model": ("base_model", "instruction_data", "tokenizer"),
    "dpo_model": ("sft_model", "preference_data", "tokenizer"),
    "lora_model": ("dpo_model", "adapter_data", "tokenizer"),
}
# One of each kind in every run: transposed matrices, no packed rows, experts.
_ALWAYS = ("gpt2", "falcon", "mixtral")


def _messages(*texts: str) -> str:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return json.dumps(turns)


def _publish_own(store: Store, work: Path) -> None:
    """Conversations and pairs of a user's own, without a corpus."""
    told = {"source": "own", "format": "messages", "tools": ""}
    talks = [
        gathered_conversation(
            {
                "id": f"c{n:03}",
                "where": f"a:{n}",
                "messages": _messages(f"path {n}?", "read the file"),
                "tools": "",
                **told,
            }
        )
        for n in range(24)
    ]
    pairs = [
        gathered_pair(
            {
                "id": f"p{n}",
                "where": f"b:{n}",
                "prompt": _messages(f"path {n}?"),
                "chosen": json.dumps([{"role": "assistant", "content": "read the file"}]),
                "rejected": json.dumps([{"role": "assistant", "content": "close it"}]),
                **told,
            }
        )
        for n in range(8)
    ]
    for asset, rows, schema in (
        ("instruction_data", talks, MIXED_CONVERSATION_SCHEMA),
        ("adapter_data", talks, MIXED_CONVERSATION_SCHEMA),
        ("preference_data", pairs, MIXED_PAIR_SCHEMA),
    ):
        (work / asset).mkdir(parents=True)
        write_table(work / asset / "train.parquet", rows, schema)
    write_table(work / "adapter_data" / "documents.parquet", [], CORPUS_SCHEMA)
    for asset in ("instruction_data", "adapter_data", "preference_data"):
        publish(store, asset, work / asset)


def _loaded(folder: Path) -> LoadedModel:
    return LoadedModel("model", load_model(folder), load_tokenizer(folder), ())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _ALWAYS else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_a_model_goes_through_the_whole_chain(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for asset, inputs in INPUTS.items():
        monkeypatch.setitem(training_jobs.INPUTS, asset, inputs)
    words, origin = byte_level(), tmp_path / "origin"
    saved(tiny_model(**ARCHITECTURES[name] | {"vocab_size": words.get_vocab_size()}), origin)
    save_tokenizer(words, origin, eos_token="<|im_end|>", chat_template=CHATML)

    store = Store(str(tmp_path / "store"), training_jobs.RECIPE)
    read_foreign(files_of(origin)).save(tmp_path / "tokenizer" / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer" / "chat_template.jinja").write_text(CHATML)
    digest = file_entry(tmp_path / "tokenizer" / "tokenizer" / "tokenizer.json").sha256
    publish(store, "tokenizer", tmp_path / "tokenizer", {"tokenizer": digest})
    _publish_own(store, tmp_path / "own")

    parent: LoadedModel | None = None
    for asset in INPUTS:
        sections: dict[str, dict[str, Any]] = {
            "base_model": {"from": str(origin)},
            "lora_model": {"target_modules": "all-linear", "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}},
        }
        monkeypatch.setitem(training_jobs.SECTIONS, "base_model", {})
        done = run(make_job(store, asset, tmp_path / asset, sections.get(asset)))
        assert done.code == 0, done.output
        manifest = published(store, tmp_path / asset)
        promote(store, manifest)

        folder = store.folder(asset, manifest.version)
        model = _loaded(folder / "model")
        if parent is not None:
            assert manifest.metrics["train_loss"] < manifest.metrics["train_loss_first"]
            _assert_saved_as_trained(folder, model, parent)
            if asset != "dpo_model":
                alone = manifest.facts["rows"].startswith("one document each")
                assert alone == (name in NOT_ISOLATED), manifest.facts["rows"]
        parent = model


def _assert_saved_as_trained(folder: Path, model: LoadedModel, parent: LoadedModel) -> None:
    """The saved change is the one that was trained, and the folder is not its parent."""
    probe = read_probe(folder)
    assert not isinstance(probe, str), probe
    own, theirs = answer(model, probe), answer(parent, probe)
    assert not isinstance(own, str) and not isinstance(theirs, str), (own, theirs)
    cosine, ratio = change_cosine(probe, own, theirs), parent_ratio(probe, own, theirs)
    assert isinstance(cosine, Estimate) and cosine.value >= 0.98, cosine
    assert isinstance(ratio, Estimate) and ratio.value <= 0.5, ratio
