"""Five lines, a model's folder and a file of chats: from nothing to a gated adapter, by the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.conftest import BIN, ROOT, environment
from tests.foreign import CHATML, byte_level, save_tokenizer, saved, tiny_model
from tests.patience import run_command

FIVE_LINES = """\
extends: finetune
name: support
base_model: {{from: {model}}}
conversations:
  - {{name: tickets, path: {chats}}}
"""
# A random model of 0.1 million parameters, in seconds: what is written here shortens, and loosens what such a model
# cannot reach. The gates that count rows, masks and exports stand.
SMALL = """\
evaluation_sets: {conversations: 40}
evaluation: {context: 128, max_new_tokens: 8}
lora_model:
  steps: 30
  context: 128
  batch_tokens: 512
  optimizer: {learning_rate: 2.0e-2, warmup_steps: 2, weight_decay: 0.0}
gates:
  lora_model:
    - {metric: answer_gain, must_be: ">=", threshold: 0.02}
    - {metric: saved_change_cosine, must_be: ">=", threshold: 0.98}
    - {metric: export_parent_ratio, must_be: "<=", threshold: 0.5}
"""


def _write_chats(path: Path) -> None:
    """Tickets in OpenAI's form."""
    colours = ("red", "green", "blue", "grey", "black", "white")
    with path.open("w") as file:
        for number in range(400):
            colour = colours[number % len(colours)]
            turns = [
                {"role": "user", "content": f"My lamp {number} blinks {colour}. What now?"},
                {"role": "assistant", "content": f"Turn the {colour} knob of the lamp to the left."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


class Support:
    """A home with the recipe. Its jobs are forked: the test is about what they make, and not about their processes."""

    def __init__(self, folder: Path, python: str) -> None:
        self.python = python
        self.home, self.recipe = folder / "home", folder / "support.yaml"
        words, model = byte_level(size=400), folder / "model"
        saved(tiny_model(vocab_size=words.get_vocab_size(), max_position_embeddings=256), model)
        save_tokenizer(words, model, eos_token="<|im_end|>", chat_template=CHATML)
        _write_chats(folder / "tickets.jsonl")
        self.recipe.write_text(FIVE_LINES.format(model=model, chats=folder / "tickets.jsonl") + SMALL)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "gatehouse"), arguments[0], "-r", str(self.recipe), *arguments[1:]]
        if not warm.can_run(("gatehouse", *arguments), {}):
            return run_command(command, 600, cwd=ROOT, env=environment(self.home))
        return warm.run_command(command, 600, cwd=ROOT, env=environment(self.home), python=self.python)

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.command("status", "--json")
        assert done.returncode == 0, done.stdout
        return {status["asset"]: status for status in json.loads(done.stdout)}


@pytest.fixture
def support(tmp_path: Path) -> Iterator[Support]:
    with warm.stand_in() as python:
        yield Support(tmp_path, python)


def test_five_lines_tune_a_model_on_ones_own_chats(support: Support) -> None:

    done = support.command("run")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Measured before and after, with 95% intervals" in done.stdout
    assert "heldout_answer_loss" in done.stdout

    status = support.status()
    assert list(status) == [
        "conversations", "evaluation_sets", "tokenizer", "instruction_data", "adapter_data", "base_model", "lora_model",
    ]  # fmt: skip
    assert all(found["promoted"] and found["fresh"] for found in status.values())
    assert status["lora_model"]["inputs"].keys() == {"base_model", "adapter_data", "tokenizer"}

    shown = support.command("preview", "--rows", "1")
    assert shown.returncode == 0, shown.stdout
    assert "[[Turn the" in shown.stdout and "<|im_end|>]]" in shown.stdout

    answered = support.command("chat", "My lamp 3 blinks red. What now?")
    assert answered.returncode == 0 and answered.stdout.strip(), answered.stdout

    again = support.command("run")
    assert again.returncode == 0 and "built" not in again.stdout.replace("never built", ""), again.stdout


@pytest.mark.slow
def test_make_finetune(tmp_path: Path) -> None:
    """The real one: SmolLM2, 4,000 chats, every gate of the recipe."""
    done = run_command(["make", "finetune"], 900, cwd=ROOT, env=environment(tmp_path / "home"))
    assert done.returncode == 0, done.stdout[-4000:]
    listed = run_command(
        [str(BIN / "gatehouse"), "status", "-r", "smollm2", "--json"], cwd=ROOT, env=environment(tmp_path / "home")
    )
    status = {found["asset"]: found for found in json.loads(listed.stdout)}
    gates = {gate["name"]: gate["value"] for gate in status["lora_model"]["gates"]}
    assert status["lora_model"]["promoted"]
    assert gates["answer_gain"] > 0.5
    assert gates["benign_answer_rate"] > 0.5
