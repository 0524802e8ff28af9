"""Small GGUF files, written by gguf's own writer as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tests.foreign import CHATML, byte_level, tiny_model

NORMAL, CONTROL = 1, 3
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in the order that llama.cpp has them in."""
    split = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of a Llama."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[part.removesuffix('.weight')]}.weight"


def write_llama(
    path: Path,
    model: PreTrainedModel | None = None,
    tokenizer: Tokenizer | None = None,
    pre: str = "gpt-2",
    quantized: bool = False,
    more: dict[str, np.ndarray] | None = None,
    template: str | None = CHATML,
) -> PreTrainedModel:
    """Write a Llama and return it.

    Args:
        pre: The rule that words are cut by, as the file names it.
        quantized: Matrices are stored as Q8_0.
        more: Further tensors.
    """
    tokenizer = tokenizer or byte_level()
    size = tokenizer.get_vocab_size()
    model = model or tiny_model(vocab_size=size, tie_word_embeddings=True, eos_token_id=2)
    config = model.config

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a small one")
    writer.add_string("general.license", "apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(size)
    _add_tokenizer(writer, tokenizer, pre, template)

    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = value.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = permuted(weight, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if quantized and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), weight)
    for name, weight in (more or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, pre: str, template: str | None) -> None:
    content = json.loads(tokenizer.to_str())
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = {token["content"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([CONTROL if name in special else NORMAL for name in names])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
