"""The realised mixture beside the asked one, as the evaluation measures it; a gate on it refuses a wrong one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from pipeline.gates.judge import judge_gate
from tests.unit.evaluation.models.conftest import Evaluate
from tests.unit.evaluation.models.test_metrics import Save
from tests.unit.gates.worlds import World
from training.job.context import InputArtifact
from training.specs.gates import Gate
from training.specs.mixture import MIXTURE_FILE, Mixture, SourceRead

SECTION: dict[str, Any] = {
    "architecture": {"model_type": "llama"},
    "steps": 100,
    "batch_tokens": 1024,
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
    "curriculum": [{"context": 64, "share": 0.5}, {"context": 128, "share": 0.5, "weights": {"books": 3.0}}],
}
# Held are 900 and 100 tokens, so the phases ask for 0.1 and 0.25 of books.
ASKED = {"web": 0.825, "books": 0.175}


@pytest.fixture
def trained(save: Save, untrained: LlamaForCausalLM) -> InputArtifact:
    artifact = save("base_model", untrained)
    manifest = artifact.manifest.model_copy(update={"section": SECTION, "metrics": {"steps": 100.0}})
    return dataclasses.replace(artifact, manifest=manifest)


def write(folder: Path, web: int, books: int) -> None:
    sources = (SourceRead(name="web", tokens=web, held=900), SourceRead(name="books", tokens=books, held=100))
    (folder / MIXTURE_FILE).write_text(Mixture(sources=sources).model_dump_json())


@pytest.mark.parametrize(("books", "passes"), [(0.175, True), (0.18, True), (0.1, False), (0.3, False), (0.0, False)])
def test_a_gate_refuses_a_wrong_mixture(
    trained: InputArtifact, evaluate: Evaluate, tmp_path: Path, books: float, passes: bool
) -> None:
    write(trained.folder, round(80_000 * (1 - books)), round(80_000 * books))
    measured = evaluate(trained)
    assert measured["metrics"]["mixture_error"] == pytest.approx(abs(books - ASKED["books"]), abs=1e-9)
    gate = Gate(metric="mixture_error", must_be="<=", threshold=0.01)
    estimate = measured["report"].estimates["mixture_error"]
    assert judge_gate(gate, World(tmp_path).evidence({"mixture_error": estimate}), None).passed is passes


def test_a_file_that_is_no_mixture_leaves_the_metric_out(trained: InputArtifact, evaluate: Evaluate) -> None:
    (trained.folder / MIXTURE_FILE).write_text('{"sources": []}')
    assert "mixture.json is not what a training writes" in evaluate(trained)["missing"]["mixture_error"]
