"""`loads` is 1 for a sound folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.unit.evaluation_models.conftest import Evaluate, manifest
from training.context import InputArtifact
from training.errors import InputRefused, RecipeError

Save = Callable[[str, LlamaForCausalLM], InputArtifact]


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def pickled_weights(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def truncated_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def one_tensor_short(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def other_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


@pytest.mark.parametrize("damage", [no_weights, pickled_weights, truncated_weights, one_tensor_short, broken_config,
                                    other_tokenizer, no_tokenizer])
def test_a_damaged_folder_does_not_load(damage: Callable[[Path], None], save: Save, evaluate: Evaluate,
                                        base: LlamaForCausalLM) -> None:
    artifact = save("base_model", base)
    damage(artifact.folder / "model")
    report = evaluate(artifact)
    assert report["metrics"] == {"loads": 0.0}
    assert "does not load" in (report["folder"] / "report" / "card.md").read_text()


def test_a_folder_whose_own_settings_run_past_the_end_is_not_sound(save: Save, evaluate: Evaluate,
                                                                   base: LlamaForCausalLM,
                                                                   chat: LlamaForCausalLM) -> None:
    artifact, parent = save("sft_model", chat), save("base_model", base)
    assert evaluate(artifact, parent, out="sound")["metrics"]["loads"] == 1
    path = artifact.folder / "model" / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"eos_token_id": settings["eos_token_id"][0]}))
    report = evaluate(artifact, parent, out="endless")
    assert report["metrics"]["loads"] == 0
    assert "eos_token_id" in (report["folder"] / "report" / "card.md").read_text()


def test_a_parent_that_does_not_load_is_refused(save: Save, evaluate: Evaluate, base: LlamaForCausalLM,
                                                chat: LlamaForCausalLM) -> None:
    parent = save("base_model", base)
    no_weights(parent.folder / "model")
    with pytest.raises(InputRefused, match="base_model again"):
        evaluate(save("sft_model", chat), parent)


def test_a_missing_parent_is_refused(save: Save, evaluate: Evaluate, chat: LlamaForCausalLM) -> None:
    with pytest.raises(InputRefused, match="needs the input base_model"):
        evaluate(save("sft_model", chat))


def test_a_context_beyond_the_positions_is_refused(save: Save, evaluate: Evaluate, base: LlamaForCausalLM) -> None:
    with pytest.raises(RecipeError, match="256 positions"):
        evaluate(save("base_model", base), context=512)


def test_only_models_are_judged(tmp_path: Path, evaluate: Evaluate) -> None:
    with pytest.raises(InputRefused, match="cannot judge corpus"):
        evaluate(InputArtifact(tmp_path, manifest("corpus", {})))
