"""A base model that was imported: with a chat template of its own it is a chat model, without one it reads text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.test_import_stages import Bench, chat_folder
from tests.unit.evaluation.models.conftest import BENIGN, HARMFUL, conversation, manifest, write_rows, write_sets
from training.evaluation.models import LoadedModel, load
from training.job.context import InputArtifact
from training.specs.evaluation import EvaluationSection
from training.specs.evidence import EvaluationReport
from training.stages import evaluate_model

CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench")


def evaluated(bench: Bench, model: InputArtifact, sets: Path) -> tuple[EvaluationReport, Path]:
    """Run the stage."""
    section = EvaluationSection(context=256, max_new_tokens=4, batch=8)
    sets_artifact = InputArtifact(sets, manifest("evaluation_sets", {}))
    out = bench.run(evaluate_model, section, artifact=model, evaluation_sets=sets_artifact)
    return EvaluationReport.model_validate_json((out.folder / "report.json").read_bytes()), out.folder


def own_sets(folder: Path, **changes: Any) -> Path:
    """Sets of conversations and written prompts alone, with no tasks."""
    none: dict[str, Any] = {"text": [], "questions": [], "preferences": []}
    sets = write_sets(folder, **none | changes)
    (sets / "tasks" / "tasks.json").write_text("[]")
    return sets


def test_with_a_template_of_its_own_it_is_measured_as_a_chat_model(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    model = bench.model(folder, bench.tokenizer(folder))
    assert load(model, CPU).is_chat
    report, out = evaluated(bench, model, own_sets(tmp_path / "sets"))

    assert report.metrics["loads"] == 1
    assert report.estimates["refusal_rate"].count == len(HARMFUL)
    assert report.estimates["benign_answer_rate"].count == len(BENIGN)
    assert report.estimates["heldout_answer_loss"].count == 8
    assert {"stop_rate", "clean_stop_rate", "empty_rate", "repetition_rate"} <= set(report.metrics)
    assert report.metrics["chat_round_trip"] == 1 and report.estimates["chat_round_trip"].count >= 8
    assert report.missing["answer_loss"] == "the evaluation sets hold no general questions"
    assert report.missing["loss_drop"] == "the evaluation sets hold no general text"
    assert "share of harmful prompts that are refused" in (out / "report" / "card.md").read_text()


def test_without_a_template_it_reads_plain_text(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    model = bench.model(folder, bench.tokenizer(folder))
    loaded = load(model, CPU)
    assert not loaded.is_chat and not loaded.has_chat_format
    assert loaded.start == loaded.tokenizer.eos_token_id

    sets = own_sets(tmp_path / "sets")
    text = "The path of the file is read by the reader of the files. " * 6
    write_rows(sets / "text.jsonl", [{"id": "t", "text": text, "source": "s", "domain": "general", "bytes": len(text)}])
    report, _ = evaluated(bench, model, sets)
    assert report.metrics["loads"] == 1 and report.metrics["heldout_bits_per_byte"] > 0
    assert report.missing["heldout_answer_loss"] == (
        "no held-out conversation could be scored: 8 the model has no chat template"
    )
    assert "refusal_rate" not in {**report.estimates, **report.missing}


def test_what_was_trained_here_reads_plain_text(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    model = bench.model(folder, bench.tokenizer(folder))
    facts = {name: value for name, value in model.manifest.facts.items() if name != "origin"}
    trained = InputArtifact(model.folder, model.manifest.model_copy(update={"facts": facts}))
    loaded = load(trained, CPU)
    assert loaded.has_chat_format and not loaded.is_chat
    assert LoadedModel("lora_legal", loaded.model, loaded.tokenizer, loaded.stops).is_chat


def test_its_conversations_are_read_with_its_own_template(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    model = bench.model(folder, bench.tokenizer(folder))
    loaded = load(model, CPU)
    rows = [conversation("c", "Anna"), conversation("d", "Anna", "Boris")]
    report, out = evaluated(bench, model, own_sets(tmp_path / "sets", conversations=rows))
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    weights = {item["id"]: item["weight"] for item in items if item["metric"] == "heldout_answer_loss"}
    ends = {"c": 1, "d": 2}
    for row in rows:
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert weights[row["id"]] == sum(len(loaded.encode(text)) for text in answers) + ends[row["id"]]
    assert report.estimates["heldout_answer_loss"].count == 2
