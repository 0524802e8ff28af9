"""What others find in a folder: it loads, says what it is, and an adapter names its parent."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from pathlib import Path

import jinja2
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration import training_jobs as jobs
from training.engine import adapter
from training.errors import InputRefused
from training.specs.artifacts import Manifest
from training.store.store import Store

TALK = [{"role": "user", "content": "What does path do?"}]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return jobs.build_all(tmp_path_factory.mktemp("built"))


def promoted(store: Store, asset: str) -> tuple[Manifest, Path]:
    pointer = store.promotion(asset)
    assert pointer is not None
    return store.manifest(asset, pointer.version), store.folder(asset, pointer.version)


def example(readme: Path, **paths: Path) -> str:
    """The code of a README, with the paths of this machine."""
    code = re.search(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert code
    text = code.group(1)
    for name, path in paths.items():
        text = text.replace(f"path/to/{name.replace('__', '/')}", str(path))
    assert "path/to" not in text
    return text


@pytest.mark.parametrize("asset", list(jobs.INPUTS))
def test_a_model_folder_is_what_others_expect(built: Store, asset: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = promoted(built, asset)
    model = folder / "model"

    assert json.loads((model / "config.json").read_text())["use_cache"] is True
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.model_max_length == 128
    template = jinja2.Environment().from_string((model / "chat_template.jinja").read_text())
    assert template.render(messages=TALK, add_generation_prompt=True) == tokenizer.apply_chat_template(
        TALK, tokenize=False, add_generation_prompt=True
    )
    marked = tokenizer.apply_chat_template(
        [*TALK, {"role": "assistant", "content": "It joins."}],
        return_dict=True,
        chat_template="training",
        return_assistant_tokens_mask=True,
    )
    assert 0 < sum(marked["assistant_masks"]) < len(marked["input_ids"])
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1, "as the umask says"

    exec(example(model / "README.md", this__folder=model), {})
    assert capsys.readouterr().out.strip() or asset != "base_model"


def test_an_adapter_names_its_parent(built: Store) -> None:
    parent, before = promoted(built, "dpo_model")
    _, folder = promoted(built, "lora_model")
    digest = hashlib.sha256((before / "model" / "model.safetensors").read_bytes()).hexdigest()

    with safe_open(folder / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        named = file.metadata()
    assert named["parent"] == "dpo_model"
    assert named["parent_content"] == parent.digest
    assert json.loads(named["parent_weights"]) == {"model.safetensors": digest}
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert parent.digest in config["base_model_name_or_path"]
    assert f"{digest}  model.safetensors" in (folder / "adapter" / "README.md").read_text()


def test_the_readme_of_an_adapter_loads_the_merged_model(built: Store) -> None:
    _, before = promoted(built, "dpo_model")
    _, folder = promoted(built, "lora_model")
    found: dict[str, object] = {}
    exec(
        example(folder / "adapter" / "README.md", dpo_model__model=before / "model", adapter=folder / "adapter"), found
    )
    loaded, tokenizer = found["model"], found["tokenizer"]
    assert callable(loaded)
    assert callable(tokenizer)
    ids = torch.arange(10, 60)[None]
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(folder / "model")(input_ids=ids).logits
        assert torch.allclose(loaded(input_ids=ids).logits, merged, atol=1e-4)
    assert tokenizer("text")["input_ids"]


def test_the_merged_weights_are_the_parents_and_the_product(built: Store) -> None:
    _, before = promoted(built, "dpo_model")
    _, folder = promoted(built, "lora_model")
    parent, merged = (load_file(path / "model" / "model.safetensors") for path in (before, folder))
    parts = load_file(folder / "adapter" / "adapter_model.safetensors")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())

    changed = 0
    for name, weight in parent.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = weight.float()
        if f"{key}.lora_A.weight" in parts:
            product = parts[f"{key}.lora_B.weight"] @ parts[f"{key}.lora_A.weight"]
            wanted = wanted + product * (config["lora_alpha"] / config["r"])
            changed += 1
        assert torch.equal(merged[name], wanted.to(merged[name].dtype)), name
    assert changed == len(parts) // 2


@pytest.mark.parametrize("other", ["base_model", "sft_model"])
def test_an_adapter_refuses_another_parent(built: Store, other: str) -> None:
    manifest, before = promoted(built, other)
    _, folder = promoted(built, "lora_model")
    model = AutoModelForCausalLM.from_pretrained(before / "model")

    with pytest.raises(InputRefused, match=f"was trained on dpo_model .* not on {other}"):
        adapter.merge(model, manifest, folder / "adapter")


def test_no_library_asks_a_network_for_an_adapters_parent(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    _, folder = promoted(built, "lora_model")

    with pytest.raises((OSError, ValueError), match=r"README\.md"):
        AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
