"""An embedding with rows that no token has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.data.tokens import parts
from training.engine.architecture import untrained_model
from training.engine.export import generation_config
from training.evaluation.generation import generate
from training.evaluation.models import LoadedModel
from training.specs.base_model import BaseModelSection
from training.tokenizer_folder import load_tokenizer

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
TRAINED = {
    "architecture": LLAMA, "steps": 1, "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0}, "batch_tokens": 32,
    "curriculum": [{"context": 32, "share": 1}],
}  # fmt: skip


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a model is built with, and a tokenizer of 400 tokens."""
    root = tmp_path_factory.mktemp("words")
    corpus = parts.corpus_artifact(root / "corpus", 20)
    tokenizer = load_tokenizer(parts.tokenizer_artifact(root / "out", corpus).folder / "tokenizer")
    return SimpleNamespace(
        tokenizer=tokenizer,
        pad=tokenizer.pad_token_id,
        stops=(tokenizer.eos_token_id,),
        choice=SimpleNamespace(attention="sdpa"),
        context=SimpleNamespace(seed=0),
    )


def test_rows_are_a_multiple_and_by_default_the_vocabulary() -> None:
    plain, padded = BaseModelSection(**TRAINED), BaseModelSection(**TRAINED, vocabulary_multiple=128)
    assert [plain.rows(400), padded.rows(400), padded.rows(512), padded.rows(513)] == [400, 512, 512, 640]
    assert "vocabulary_multiple" not in plain.identity_fields()
    assert padded.identity_fields() == plain.identity_fields() | {"vocabulary_multiple": 128}


def test_an_imported_model_has_its_own_rows() -> None:
    with pytest.raises(ValueError, match="vocabulary_multiple: the model of `from` has its own rows"):
        BaseModelSection(**{"from": "~/model", "vocabulary_multiple": 64})


def test_a_row_without_a_token_is_in_the_folder_and_never_written(session: Any, tmp_path: Path) -> None:
    rows = BaseModelSection(**TRAINED, vocabulary_multiple=128).rows(len(session.tokenizer))
    model = untrained_model(session, LLAMA, rows)
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == 512
    with torch.no_grad():  # as loud as nothing ever is that was trained
        model.get_output_embeddings().weight[400:] *= 100

    model.generation_config = generation_config(session, rows)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.vocab_size == 512
    ids = torch.tensor([[5, 6, 7]])
    written = again.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24)
    assert int(written.max()) < 400 < int(again(ids).logits[0, -1].argmax())

    loaded = LoadedModel("base_model", again, session.tokenizer, session.stops)
    (answer,) = generate(loaded, [[5, 6, 7]], 24, batch=1)
    assert max(answer.tokens) < 400
