"""Importing a model: what a folder lacks or contradicts is refused by name, and what is written answers the same."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, GenerationConfig, LlamaModel, T5Config

from tests.foreign import byte_level, edit, files_of, saved, tiny_model
from training.engine.export import read_ends
from training.engine.imported_weights import fit_tokenizer, logits_of, write_model, written_difference
from training.engine.model_import import embedding_rows, import_model
from training.errors import InputRefused
from training.model_folder import load_model, plain_model

ROWS = [[3, 4, 5, 6, 7, 8, 9, 10], [20, 30, 40]]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tiny_model(), tmp_path / "origin")


def change_tensors(folder: Path, **changes: Any) -> None:
    """Replace tensors of `model.safetensors`; None takes one out. Two underscores stand for a dot."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, path, {"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(InputRefused) as caught:
        import_model(files_of(folder))
    return str(caught.value)


def test_a_tensor_that_is_missing_is_named(folder: Path) -> None:
    change_tensors(folder, **{UP: None})
    message = refusal(folder)
    assert f"1 tensors that config.json asks for are in no file: {UP}" in message
    assert str(folder) in message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    change_tensors(folder, **{UP: torch.zeros(60, 32)})
    assert f"{UP} is 60x32, and config.json makes it 64x32" in refusal(folder)


def test_a_tensor_that_nothing_asks_for_is_named(folder: Path) -> None:
    change_tensors(folder, **{"model.layers.7.extra": torch.zeros(3)})
    assert "belong to nothing that config.json describes: model.layers.7.extra" in refusal(folder)


def test_a_number_that_is_not_finite_is_named_with_its_tensor(folder: Path) -> None:
    change_tensors(folder, **{UP: torch.full((64, 32), torch.nan)})
    assert f"1 tensors hold numbers that are not finite: {UP}" in refusal(folder)


def test_a_head_that_is_in_no_file_is_not_drawn_at_random(tmp_path: Path) -> None:
    folder = saved(tiny_model(tie_word_embeddings=True), tmp_path / "origin")
    edit(folder / "config.json", tie_word_embeddings=False)
    message = refusal(folder)
    assert "lm_head.weight" in message
    assert "write tie_word_embeddings: true" in message


def test_two_matrices_under_a_tied_flag_are_both_kept_and_the_flag_is_set_right(folder: Path, tmp_path: Path) -> None:
    expected = logits_of(tiny_model(), ROWS)
    edit(folder / "config.json", tie_word_embeddings=True)

    imported = import_model(files_of(folder))
    write_model(imported, tmp_path / "written", (2,), 0)

    assert any("tie_word_embeddings is false" in note for note in imported.notes)
    assert json.loads((tmp_path / "written" / "config.json").read_text())["tie_word_embeddings"] is False
    assert written_difference(tmp_path / "written", ROWS, expected) == 0


def test_a_tied_matrix_stays_one(tmp_path: Path) -> None:
    folder = saved(tiny_model(tie_word_embeddings=True), tmp_path / "origin")
    imported = import_model(files_of(folder))
    write_model(imported, tmp_path / "written", (2,), 0)
    model = imported.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in load_file(tmp_path / "written" / "model.safetensors")


def test_weights_are_loaded_in_float32_and_saved_in_their_own_type(tmp_path: Path) -> None:
    folder = saved(tiny_model().to(torch.bfloat16), tmp_path / "origin")
    imported = import_model(files_of(folder))
    assert {value.dtype for value in imported.model.parameters()} == {torch.float32}
    expected = logits_of(imported.model, ROWS)

    write_model(imported, tmp_path / "written", (2,), 0)

    tensors = load_file(tmp_path / "written" / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert written_difference(tmp_path / "written", ROWS, expected) == 0
    # The kinds of the origin are what the card says it was stored as.
    assert imported.kinds == {"BF16": len(tensors)}


@pytest.mark.parametrize("learning_rate", [1e-5, 1e-6])
def test_a_small_step_changes_the_imported_weights(tmp_path: Path, learning_rate: float) -> None:
    folder = saved(tiny_model().to(torch.bfloat16), tmp_path / "origin")
    model = import_model(files_of(folder)).model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    ids = torch.tensor(ROWS[:1])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    name = "model.layers.0.mlp.down_proj.weight"
    assert (dict(model.named_parameters())[name] != before[name]).float().mean() > 0.9


def test_shards_are_read_and_half_of_them_are_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tiny_model(), tmp_path / "origin", max_shard_size="30KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    imported = import_model(files_of(folder))
    assert all(
        torch.equal(a, b) for a, b in zip(logits_of(imported.model, ROWS), logits_of(tiny_model(), ROWS), strict=True)
    )

    shards[1].unlink()
    assert f"1 of the {len(shards)} files that model.safetensors.index.json names are missing: {shards[1].name}" in (
        refusal(folder)
    )


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path) -> None:
    folder = saved(tiny_model(), tmp_path / "origin", max_shard_size="30KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    message = refusal(folder)
    assert f"{shard} is damaged or cut short" in message
    assert "fetch it again" in message


def test_an_index_of_other_files_is_refused(tmp_path: Path) -> None:
    folder = saved(tiny_model(), tmp_path / "origin", max_shard_size="30KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    wrong = next(name for name, file in index["weight_map"].items() if file == shards[0])
    index["weight_map"][wrong] = shards[1]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"it puts 1 tensors elsewhere, such as {wrong} into {shards[1]}, which is in {shards[0]}" in refusal(folder)

    index["weight_map"][wrong] = "../../outside.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside.safetensors" in refusal(folder)

    (folder / "model.safetensors.index.json").unlink()
    assert "holds shards and no model.safetensors.index.json" in refusal(folder)


def test_pickles_alone_are_refused_and_beside_safetensors_left_out(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "onnx").mkdir()
    files = files_of(folder)
    import_model(files)
    assert set(files.left_out) == {"pytorch_model.bin", "modeling_evil.py", "onnx/"}

    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert "holds its weights as pickles only (pytorch_model.bin)" in message
    assert "save_pretrained" in message


def test_an_adapter_alone_is_told_to_be_merged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "it is an adapter; merge it into its model first" in refusal(tmp_path)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="lamma")
    assert "has no architecture 'lamma'" in refusal(folder)


def test_a_model_that_needs_its_own_code_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="evil", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert "needs code of the folder (auto_map), and no code of it is run" in refusal(folder)


def test_code_beside_a_known_architecture_is_left_out(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    imported = import_model(files_of(folder))
    assert "auto_map of config.json is left out: no code of a folder is run" in imported.notes
    assert "auto_map" not in imported.model.config.to_dict()


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    bert = BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    assert "BertForMaskedLM is no causal language model" in refusal(tmp_path / "bert")

    LlamaModel(tiny_model().config).save_pretrained(tmp_path / "headless")
    assert "LlamaModel is no causal language model" in refusal(tmp_path / "headless")

    T5Config().save_pretrained(tmp_path / "t5")
    assert "is no causal language model" in refusal(tmp_path / "t5")


def test_quantised_safetensors_are_refused(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "the weights are quantised (gptq) and cannot be trained" in refusal(folder)


def test_a_model_of_pictures_is_refused(folder: Path) -> None:
    edit(folder / "config.json", vision_config={"hidden_size": 8})
    assert "models of pictures or sound are not imported" in refusal(folder)


def test_a_configuration_of_another_size_is_refused_within_the_memory(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=400_000_000)
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert str(folder / "config.json") in refusal(folder)


def test_generation_settings_that_cannot_be_saved_are_repaired_and_said(folder: Path, tmp_path: Path) -> None:
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7]}
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):  # what would happen after the training
        GenerationConfig(**settings).save_pretrained(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps(settings))

    imported = import_model(files_of(folder))

    assert imported.settings == {"do_sample": False, "eos_token_id": [2, 7]}
    assert any("cannot be saved as it is; left out of it: temperature, top_p" in note for note in imported.notes)


def test_every_end_token_is_kept_and_the_rest_stays_with_the_origin(folder: Path, tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 0.6, "eos_token_id": [5, 7], "max_length": 20}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    imported = import_model(files_of(folder))
    assert imported.ends == (5, 7, 2)  # config.json names one more

    write_model(imported, tmp_path / "written", imported.ends, 0)

    assert read_ends(tmp_path / "written") == (5, 7, 2)
    written = json.loads((tmp_path / "written" / "generation_config.json").read_text())
    assert not {"temperature", "max_length"} & written.keys()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "written").eval()
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.zero_()
        head[7] = model.model(input_ids=torch.tensor([ROWS[0]])).last_hidden_state[0, -1]
    assert model.generate(torch.tensor([ROWS[0]]), max_new_tokens=9)[0].tolist() == [*ROWS[0], 7]


def test_a_word_without_a_row_is_refused_by_name(folder: Path) -> None:
    imported = import_model(files_of(folder))  # 200 rows
    tokenizer = byte_level(size=300)
    word = min(token for token, number in tokenizer.get_vocab().items() if number >= 200)
    with pytest.raises(InputRefused, match="the tokenizer does not fit the model") as caught:
        fit_tokenizer(imported, tokenizer, {})
    assert repr(word) in str(caught.value)
    assert "200 rows" in str(caught.value)


def test_rows_beyond_the_tokenizer_are_kept(tmp_path: Path) -> None:
    folder = saved(tiny_model(vocab_size=350), tmp_path / "origin")
    imported = import_model(files_of(folder))
    notes = fit_tokenizer(imported, byte_level(size=300), {})
    assert embedding_rows(imported.model) == 350
    assert "tokens, 350 rows of the embedding" in notes[0]


def test_a_special_token_without_a_row_is_reported_and_cuts_nothing(tmp_path: Path) -> None:
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken("<image_soft_token>", special=True)])
    folder = saved(tiny_model(vocab_size=size), tmp_path / "origin")
    imported = import_model(files_of(folder))
    notes = fit_tokenizer(imported, tokenizer, {})
    assert f"{size + 1:,} tokens, {size:,} rows of the embedding" in notes[0]
    assert "without a row, and never to be used: <image_soft_token>" in notes[1]
    assert imported.rows == size


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_get_rows_that_are_the_mean_of_the_others(tmp_path: Path, tied: bool) -> None:
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    folder = saved(tiny_model(vocab_size=size, tie_word_embeddings=tied), tmp_path / "origin")
    imported = import_model(files_of(folder))
    expected = logits_of(imported.model, ROWS)
    mean = imported.model.get_input_embeddings().weight.detach().mean(0)
    tokenizer.add_special_tokens([AddedToken("<|tool|>", special=True)])

    fit_tokenizer(imported, tokenizer, {"<|tool|>": size})
    write_model(imported, tmp_path / "written", (2,), 0)

    assert imported.rows == size + 1
    assert torch.allclose(imported.model.get_input_embeddings().weight[size], mean, atol=1e-6)
    after = logits_of(imported.model, ROWS)
    assert all(torch.equal(a[:, :size], b) for a, b in zip(after, expected, strict=True))
    assert written_difference(tmp_path / "written", ROWS, after) == 0
    assert json.loads((tmp_path / "written" / "config.json").read_text())["vocab_size"] == size + 1


def test_a_new_token_takes_a_row_that_no_token_had(tmp_path: Path) -> None:
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    folder = saved(tiny_model(vocab_size=size + 30), tmp_path / "origin")
    imported = import_model(files_of(folder))
    tokenizer.add_special_tokens([AddedToken("<|tool|>", special=True)])
    fit_tokenizer(imported, tokenizer, {"<|tool|>": size})
    weight = imported.model.get_input_embeddings().weight
    assert imported.rows == size + 30
    others = torch.cat([weight[:size], weight[size + 1 :]])
    assert torch.allclose(weight[size], others.mean(0), atol=1e-6)


def test_the_written_folder_is_a_plain_one(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", attn_implementation="flash_attention_2", _name_or_path="/home/somebody/model")
    write_model(import_model(files_of(folder)), tmp_path / "written", (2,), 0)
    assert plain_model(tmp_path / "written")
    text = (tmp_path / "written" / "config.json").read_text()
    assert "somebody" not in text and "flash" not in text


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        shutil.copytree(folder, tmp_path / f"copy{number}")
        write_model(import_model(files_of(tmp_path / f"copy{number}")), tmp_path / f"written{number}", (2,), 0)
    for path in (tmp_path / "written0").iterdir():
        assert path.read_bytes() == (tmp_path / "written1" / path.name).read_bytes()


def test_rows_without_a_token_are_kept_and_never_generated(tmp_path: Path) -> None:
    """Qwen has 151,936 rows for 151,669 tokens."""
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[150:] *= 50
    imported = import_model(files_of(saved(model, tmp_path / "origin")))
    write_model(imported, tmp_path / "written", (2,), 0, used=150)

    written = load_model(tmp_path / "written")
    assert written.get_input_embeddings().weight.shape[0] == 200
    generated = written.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=16, do_sample=False)
    assert int(generated.max()) < 150
    settings = json.loads((tmp_path / "written" / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == list(range(150, 200))
