"""Answers that are generated in a batch are those that are generated one by one, for every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.foreign import tiny_model
from tests.unit.data.conversations import chat_tokenizers
from tests.unit.engine.test_architectures import ARCHITECTURES
from training.evaluation.generation import generate
from training.evaluation.models import LoadedModel
from training.tokenizer_folder import load_tokenizer

LENGTHS = (1, 3, 7, 12, 18, 25, 31, 44)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_tokenizers.write(tmp_path_factory.mktemp("tokenizer"), *chat_tokenizers.qwen2())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_answers_as_its_rows_do_alone(name: str, tokenizer: Path) -> None:
    loaded_tokenizer = load_tokenizer(tokenizer)
    model = tiny_model(**ARCHITECTURES[name] | {"vocab_size": len(loaded_tokenizer)})
    loaded = LoadedModel("lora_model", model, loaded_tokenizer, (loaded_tokenizer.eos_token_id,))
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, len(loaded_tokenizer), (length,), generator=draw).tolist() for length in LENGTHS]

    together = generate(loaded, prompts, 12, batch=len(prompts))
    alone = [generate(loaded, [prompt], 12, batch=1)[0] for prompt in prompts]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_a_row_of_the_embedding_without_a_token_is_never_chosen(tokenizer: Path) -> None:
    """Models come with more rows than their tokenizer has tokens; nothing ever trained them."""
    loaded_tokenizer = load_tokenizer(tokenizer)
    model = tiny_model(vocab_size=len(loaded_tokenizer) + 20, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(loaded_tokenizer) :] *= 50
    loaded = LoadedModel("lora_model", model, loaded_tokenizer, (loaded_tokenizer.eos_token_id,))
    (answer,) = generate(loaded, [[5, 6, 7]], 24, batch=1)
    assert max(answer.tokens) < len(loaded_tokenizer)
