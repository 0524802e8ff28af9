"""base_model with an origin and steps: training begins from the imported weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.foreign import CHATML, byte_level, files_of, save_tokenizer, saved, tiny_model
from tests.integration.training_jobs import RECIPE, SECTIONS, Finished, make_job, publish, published, run, sentences
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.data.tokens.foreign_tokenizer import read_foreign
from training.data.tokens.shards import TokenWriter
from training.engine.model_import import import_model
from training.model_folder import load_model
from training.store.store import Store, file_entry

SLOW = {"learning_rate": 1e-6, "warmup_steps": 0}


def store_with_shards(work: Path, folder: Path) -> Store:
    """A store with the imported tokenizer and shards of its tokens."""
    store, texts = Store(str(work / "store"), RECIPE), sentences(200, seed=1)
    foreign = read_foreign(files_of(folder))
    foreign.save(work / "tokenizer" / "tokenizer")
    digest = file_entry(work / TOKENIZER_FILE.replace("tokenizer/", "tokenizer/tokenizer/", 1)).sha256
    publish(store, "tokenizer", work / "tokenizer", {"tokenizer": digest})
    plain = load_plain(folder / "tokenizer.json")
    end = plain.token_to_id(foreign.special["eos_token"])
    with TokenWriter(work / "shards", foreign.rows, 5000) as writer:
        for tokens in encode_texts(plain, texts):
            writer.add(np.append(tokens, end))
        ids = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts])
        writer.finish(np.zeros(len(texts), np.int32), ids, ("a",), {"a": 1.0}, digest)
    publish(store, "packed_shards", work / "shards", {"tokenizer": digest})
    return store


def trained(work: Path, kind: str, **section: Any) -> tuple[Finished, Store, Path]:
    words = byte_level()
    folder = work / "origin"
    sizes = {"vocab_size": words.get_vocab_size(), "max_position_embeddings": 128}
    saved(tiny_model(model_type=kind, **sizes).to(torch.bfloat16), folder)
    save_tokenizer(words, folder, eos_token="<|endoftext|>", chat_template=CHATML)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))

    store = store_with_shards(work, folder)
    before = SECTIONS["base_model"].pop("architecture")
    try:
        path = make_job(store, "base_model", work / "attempt", {"from": str(folder), "steps": 4} | section)
    finally:
        SECTIONS["base_model"]["architecture"] = before
    return run(path), store, folder


@pytest.mark.parametrize(("kind", "rows"), [("llama", "packed"), ("falcon", "one document each, padded")])
def test_training_begins_from_the_imported_weights(tmp_path: Path, kind: str, rows: str) -> None:
    done, store, folder = trained(tmp_path, kind, optimizer=SLOW)
    assert done.code == 0, done.output
    manifest = published(store, tmp_path / "attempt")
    model = load_model(store.folder("base_model", manifest.version) / "model")
    origin = dict(import_model(files_of(folder)).model.named_parameters())

    assert manifest.facts["rows"].startswith(rows)
    changed = 0.0
    for name, value in model.named_parameters():
        assert torch.allclose(value, origin[name], atol=1e-4)
        changed = max(changed, float((value - origin[name]).abs().max()))
    assert changed > 0  # in bf16, in which the origin is, no step of this size would change a weight


def test_the_ends_of_the_origin_outlive_the_training(tmp_path: Path) -> None:
    done, store, _ = trained(tmp_path, "llama")
    assert done.code == 0, done.output
    manifest = published(store, tmp_path / "attempt")
    folder = store.folder("base_model", manifest.version) / "model"
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [0, 2, 7]
    assert manifest.metrics["train_loss"] < manifest.metrics["train_loss_first"]
    assert manifest.facts["origin"], "with it, a model with a chat template is measured on its answers too"
    assert AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings is False
