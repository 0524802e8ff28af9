"""GGUF files come in: dequantised, in the right order of rows, and saved as safetensors at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.foreign import byte_level, files_of
from tests.ggufs import write_llama
from training.data.tokens.foreign_tokenizer import read_foreign
from training.data.tokens.gguf_files import read_gguf
from training.engine.imported_weights import logits_of, write_model, written_difference
from training.engine.model_import import import_model
from training.errors import InputRefused, SourceError

NAME = "tiny.gguf"
ROWS = [[4, 5, 6, 7, 8, 9, 10, 11, 12], [20, 30, 40]]


def refusal(folder: Path) -> str:
    with pytest.raises(InputRefused) as caught:
        import_model(files_of(folder, NAME))
    return str(caught.value)


def test_rows_of_queries_and_keys_are_put_back_in_their_order(tmp_path: Path) -> None:
    model = write_llama(tmp_path / NAME)
    imported = import_model(files_of(tmp_path, NAME))
    expected = logits_of(model, ROWS)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(logits_of(imported.model, ROWS), expected, strict=True))

    # Taken as they lie in the file, the rows give other logits: the test can fail.
    raw = write_llama(tmp_path / NAME)
    with torch.no_grad():
        weight = raw.model.layers[0].self_attn.q_proj.weight
        weight.copy_(weight.reshape(4, 2, 4, 32).transpose(1, 2).reshape(32, 32))
    assert float((logits_of(raw, ROWS)[0] - expected[0]).abs().max()) > 1e-2


def test_a_gguf_import_is_saved_as_plain_safetensors_with_equal_logits(tmp_path: Path) -> None:
    write_llama(tmp_path / NAME, quantized=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=NAME, dtype=torch.float32).eval()
    with pytest.raises(ValueError, match="not serializable"):  # after all the training
        theirs.save_pretrained(tmp_path / "theirs")

    imported = import_model(files_of(tmp_path, NAME))
    expected = logits_of(theirs, ROWS)
    write_model(imported, tmp_path / "written", imported.ends, 2)

    assert written_difference(tmp_path / "written", ROWS, expected) == 0
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    assert "quantization_config" not in config and config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "written" / "model.safetensors")


def test_an_import_of_a_gguf_file_can_be_trained(tmp_path: Path) -> None:
    write_llama(tmp_path / NAME, quantized=True)
    model = import_model(files_of(tmp_path, NAME)).model
    assert not getattr(model, "is_quantized", False) and getattr(model, "hf_quantizer", None) is None
    model.train()
    ids = torch.tensor(ROWS[:1])
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_import_says_from_what_it_was_dequantised(tmp_path: Path) -> None:
    write_llama(tmp_path / NAME, quantized=True)
    imported = import_model(files_of(tmp_path, NAME))
    assert imported.kinds == {"Q8_0": 15, "F32": 5}
    assert imported.notes == ("dequantised from Q8_0",)
    assert imported.ends == (2,)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.4, 0.999])
def test_a_file_that_is_cut_short_is_one_clear_error(tmp_path: Path, share: float) -> None:
    write_llama(tmp_path / NAME)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    message = refusal(tmp_path)
    assert str(path) in message and "cut short" in message
    with pytest.raises(InputRefused, match="cut short"):
        read_foreign(files_of(tmp_path, NAME))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"<!DOCTYPE html>")
    assert "is no GGUF file" in refusal(tmp_path)
    with pytest.raises(SourceError, match=r"there is no file .*other.gguf; there is tiny.gguf"):
        files_of(tmp_path, "other.gguf")


def test_values_that_would_be_left_out_are_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / NAME, more={"blk.0.attn_q.bias": np.ones(32, np.float32)})
    assert "transformers does not read all of it" in refusal(tmp_path)


def test_scaled_rotary_positions_are_refused_instead_of_lost(tmp_path: Path) -> None:
    write_llama(tmp_path / NAME, more={"rope_freqs.weight": np.ones(4, np.float32)})
    assert "its rotary positions are scaled (rope_freqs.weight)" in refusal(tmp_path)


def test_a_tokenizer_keeps_its_ids_and_its_template(tmp_path: Path) -> None:
    tokenizer = byte_level()
    write_llama(tmp_path / NAME, tokenizer=tokenizer)
    foreign = read_foreign(files_of(tmp_path, NAME))
    for text in ("The path of the file\n", "<|im_start|>user\nna\u00efve 12345<|im_end|>\n"):
        assert foreign.tokenizer.encode(text).ids == tokenizer.encode(text).ids
    assert foreign.special == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    assert foreign.template is not None and "<|im_start|>" in foreign.template
    # Padding and the end are one token, and it is said.
    assert any("told apart by its place" in note for note in foreign.notes)


def test_numbers_are_cut_as_the_file_says_and_an_unknown_rule_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / NAME, pre="smollm")
    foreign = read_foreign(files_of(tmp_path, NAME))
    assert [piece for piece, _ in foreign.tokenizer.pre_tokenizer.pre_tokenize_str("a 123")] == [
        "a", "\u0120", "1", "2", "3",
    ]  # fmt: skip

    write_llama(tmp_path / NAME, pre="of-nobody")
    with pytest.raises(InputRefused, match="cuts words by the rule 'of-nobody'"):
        read_foreign(files_of(tmp_path, NAME))


def test_the_header_names_every_kind_of_tensor(tmp_path: Path) -> None:
    write_llama(tmp_path / NAME, quantized=True)
    header = read_gguf(tmp_path / NAME)
    assert header.metadata["general.license"] == "apache-2.0"
    assert sum(header.kinds.values()) == len(header.tensors) == 20
