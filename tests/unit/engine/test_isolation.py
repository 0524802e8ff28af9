"""Documents of one row: which architectures keep them apart, and what the others train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from training.data.tokens.shards import ArrayTokens
from training.engine import isolation
from training.engine.batches import PackedBatches, read_documents
from training.model_folder import best_attention

_HIDDEN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = {"intermediate_size": 48, "max_position_embeddings": 64}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
ISOLATED: dict[str, dict[str, Any]] = {
    "llama": _HIDDEN | _WIDE,
    "qwen2": _HIDDEN | _WIDE | {"num_key_value_heads": 2},
    "gpt_neox": _HIDDEN | _WIDE,
    "gemma2": _HIDDEN | _WIDE | {"head_dim": 8, "num_key_value_heads": 2},
    "gpt2": _GPT | {"n_positions": 64},
    "gptj": _GPT | {"rotary_dim": 8, "n_positions": 64},
    "codegen": _GPT | {"rotary_dim": 8, "n_positions": 64},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "intermediate_size": 48,
        "attention_types": [[["global", "local"], 1]],
    },
    "mixtral": _HIDDEN | _WIDE | {"num_key_value_heads": 2, "num_local_experts": 4},
}
LEAKING: dict[str, dict[str, Any]] = {
    "opt": _HIDDEN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "falcon": _HIDDEN | {"alibi": False},
    "bloom": _GPT,
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
}


def build(model_type: str, fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=99, bos_token_id=None, eos_token_id=0, pad_token_id=1, **fields
    )
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=best_attention(model_type)
    )
    assert isinstance(model, PreTrainedModel)
    return model


@pytest.mark.parametrize("model_type", ISOLATED)
def test_documents_that_do_not_see_each_other_may_share_a_row(model_type: str) -> None:
    found = isolation.examine(build(model_type, ISOLATED[model_type]))
    assert found.isolated, found.reason


@pytest.mark.parametrize("model_type", LEAKING)
def test_documents_that_see_each_other_are_found(model_type: str) -> None:
    found = isolation.examine(build(model_type, LEAKING[model_type]))
    assert not found.isolated
    assert "see each other: exchanging one moves the next one's logits by 0." in found.reason


def test_eager_attention_stands_in_where_there_is_no_other() -> None:
    with_sdpa, without = ("llama", "opt"), ("gemma2", "gptj", "gpt_neo", "codegen", "mamba")
    assert {best_attention(name) for name in with_sdpa} == {"sdpa"}
    assert {best_attention(name) for name in without} == {"eager"}


def test_a_model_in_which_nothing_depends_on_anything_is_not_believed() -> None:
    model = build("llama", ISOLATED["llama"])
    for name, parameter in model.named_parameters():
        if name.endswith("o_proj.weight"):
            nn.init.zeros_(parameter)
    found = isolation.examine(model)
    assert not found.isolated
    assert "cannot be told" in found.reason


def test_one_layer_that_leaks_among_others_is_found() -> None:
    model = build("llama", ISOLATED["llama"] | {"num_hidden_layers": 4})
    assert isinstance(model, LlamaForCausalLM)
    forward = model.model.layers[2].forward

    def careless(hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return forward(hidden, attention_mask=None, **kwargs)

    model.model.layers[2].forward = careless  # type: ignore[method-assign]
    assert not isolation.examine(model).isolated


def test_weights_mode_and_random_numbers_stay_as_they_are() -> None:
    model = build("llama", ISOLATED["llama"] | {"attention_dropout": 0.5}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    assert isolation.examine(model).isolated
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("opt", LEAKING["opt"]), ("bloom", LEAKING["bloom"]), ("mamba", LEAKING["mamba"]), ("llama", ISOLATED["llama"])],
)
def test_a_row_of_its_own_gives_the_logits_of_the_document_alone(model_type: str, fields: dict[str, Any]) -> None:
    model = build(model_type, fields).eval()
    generator = np.random.default_rng(0)
    sequences = [generator.integers(5, 99, size) for size in (7, 12, 3)]
    tokens = ArrayTokens(sequences)
    segments = read_documents([np.arange(3)], tokens, [1.0], [(0, 4, 16)], 48, 1, alone=True)
    batch = PackedBatches(segments, tokens, 48, 48, 1, 1, alone=True).micro_batch(0, 0, 0)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for row, mask, line, targets in zip(batch["input_ids"], batch["attention_mask"], logits, labels, strict=True):
            document = row[mask.bool()]
            assert any(document.tolist() == one.tolist() for one in sequences)
            assert targets[: len(document)].tolist() == [-100, *document[1:].tolist()]
            torch.testing.assert_close(
                line[: len(document)], model(input_ids=document[None], use_cache=False).logits[0], atol=1e-5, rtol=0
            )


def test_a_smaller_copy_holds_a_layer_of_every_kind() -> None:
    llama = AutoConfig.for_model("llama", num_hidden_layers=32)
    assert isolation.shrunken(llama).num_hidden_layers == 2
    assert llama.num_hidden_layers == 32
    gpt2 = isolation.shrunken(AutoConfig.for_model("gpt2", n_layer=12))
    assert gpt2.n_layer == 2
    hybrid = AutoConfig.for_model("jamba", num_hidden_layers=32)
    kinds = isolation.shrunken(hybrid)
    assert set(hybrid.layers_block_type[: kinds.num_hidden_layers]) == {"mamba", "attention"}
    assert kinds.num_hidden_layers < 10
