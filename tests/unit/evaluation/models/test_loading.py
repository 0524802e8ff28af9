"""`loads` is 1 for a sound folder alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.conftest import ROOT
from tests.unit.evaluation.models.conftest import Evaluate, copy_of, items_of, manifest, probe_of
from training.errors import InputRefused, RecipeError
from training.job.context import InputArtifact
from training.specs.probe import PROBE_FILE

Save = Callable[..., InputArtifact]


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


@pytest.mark.parametrize(
    "damage",
    [no_weights, pickled_weights, truncated_weights, one_tensor_short, broken_config, other_tokenizer, no_tokenizer],
)
def test_a_damaged_folder_does_not_load(
    damage: Callable[[Path], None], save: Save, evaluate: Evaluate, base: LlamaForCausalLM
) -> None:
    artifact = save("base_model", base)
    damage(artifact.folder / "model")
    report = evaluate(artifact)
    assert report["metrics"] == {"loads": 0.0}
    assert all(reason.startswith("the model folder does not load: ") for reason in report["missing"].values())
    assert "does not load" in (report["folder"] / "report" / "card.md").read_text()


def test_a_folder_whose_own_settings_run_past_the_end_is_not_sound(
    save: Save, evaluate: Evaluate, base: LlamaForCausalLM, chat: LlamaForCausalLM
) -> None:
    artifact, parent = save("sft_model", chat), save("base_model", base)
    assert evaluate(artifact, parent, out="sound")["metrics"]["loads"] == 1
    path = artifact.folder / "model" / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"eos_token_id": settings["eos_token_id"][0]}))
    report = evaluate(artifact, parent, out="endless")
    assert report["metrics"]["loads"] == 0
    assert "eos_token_id" in report["missing"]["refusal_rate"], "others would not see what was generated here"
    assert "eos_token_id" in (report["folder"] / "report" / "card.md").read_text()


def test_another_models_weights_are_not_the_trained_ones(
    save: Save, evaluate: Evaluate, base: LlamaForCausalLM, chat: LlamaForCausalLM, untrained: LlamaForCausalLM
) -> None:
    parent = save("base_model", base)
    for number, other in enumerate((base, untrained)):
        artifact = save("sft_model", chat)
        other.save_pretrained(artifact.folder / "model")
        metrics = evaluate(artifact, parent, out=f"out-{number}")["metrics"]
        assert metrics["loads"] == 1
        assert metrics["export_logprob_error"] > 0.5


def test_an_adapter_that_was_not_merged_shows(
    save: Save, evaluate: Evaluate, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, chat: LlamaForCausalLM
) -> None:
    """The probe is of the model with its adapter; the folder holds the model without it, then both in one."""
    adapted = get_peft_model(
        copy_of(chat, tokenizer),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False),
    )
    artifact, parent = save("lora_model", chat), save("dpo_model", chat)
    (artifact.folder / PROBE_FILE).write_text(probe_of(adapted).model_dump_json())
    assert evaluate(artifact, parent, out="forgotten")["metrics"]["export_logprob_error"] > 0.05
    adapted.merge_and_unload().save_pretrained(artifact.folder / "model")
    assert evaluate(artifact, parent, out="merged")["metrics"]["export_logprob_error"] < 1e-4


def test_without_a_probe_the_export_is_not_judged(save: Save, evaluate: Evaluate, base: LlamaForCausalLM) -> None:
    artifact = save("base_model", base)
    (artifact.folder / PROBE_FILE).unlink()
    why = "the artifact holds no probe.json: train it again"
    assert evaluate(artifact)["missing"] == {"export_logprob_error": why, "fp8_overflows": why}


@pytest.mark.parametrize(
    "change",
    [
        ("|trim", ""),
        ("|replace('<|end|>', '< |end|>')", ""),
        ("'role'] == 'assistant'", "'role'] == 'user'"),
        (
            "{%- for message",
            "{%- if messages[0]['content'] == '' -%}{%- set messages = messages[1:] -%}{%- endif -%}{%- for message",
        ),
        ("{%- endfor -%}", ""),
    ],
)
def test_a_broken_chat_template_shows(
    save: Save, evaluate: Evaluate, base: LlamaForCausalLM, chat: LlamaForCausalLM, change: tuple[str, str]
) -> None:
    artifact = save("sft_model", chat)
    path = artifact.folder / "model" / "chat_template.jinja"
    template = path.read_text()
    assert change[0] in template
    path.write_text(template.replace(*change))
    report = evaluate(artifact, save("base_model", base))
    assert report["metrics"]["chat_round_trip"] < 1
    wrong = [row for row in items_of(report["folder"])["chat_round_trip"] if not row["score"]]
    assert wrong
    assert all(row["reason"] for row in wrong)


def test_a_parent_that_does_not_load_is_refused(
    save: Save, evaluate: Evaluate, base: LlamaForCausalLM, chat: LlamaForCausalLM
) -> None:
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


def test_threads_sleep_while_they_wait() -> None:
    """Beside another process on a core, an evaluation whose threads spin takes ten times as long."""
    code = """
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        assert name != "torch" or os.environ.get("OMP_WAIT_POLICY") == "passive"
sys.meta_path.insert(0, Watch())
import training.stages.evaluate_model
assert "torch" in sys.modules
"""
    without = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=without, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
