"""Evaluation sets with conversations and pairs of the recipe's own, with and without a corpus."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.gathered.conftest import Gather
from tests.unit.data.tokens import parts
from training.data.tables import read_rows
from training.job.context import InputArtifact
from training.specs.evaluation import EvaluationSection
from training.specs.evaluation_sets import EvaluationSetsSection
from training.specs.job import StageResult
from training.stages import evaluate_data, evaluation_sets

SENTENCE = "the quick brown fox jumps over the lazy dog near the old river bank today and sleeps"


def talk_row(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What is number {number}?"},
            {"role": "assistant", "content": f"It is {number}."},
        ]
    }


def build(root: Path, inputs: dict[str, InputArtifact], **section: Any) -> tuple[Path, StageResult]:
    """Run the stage."""
    files = {}
    for name in ("harmful", "benign"):
        files[name] = root / f"{name}.jsonl"
        files[name].write_text(json.dumps({"prompt": f"A {name} thing?", "topic": "t"}) + "\n")
    out = root / f"sets-{len(list(root.glob('sets-*')))}"
    context = parts.context_of(out, "evaluation_sets", EvaluationSetsSection(**section), inputs)
    return out, evaluation_sets.run(replace(context, files=files))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measured(folder: Path, root: Path) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics of its evaluation, and why others are missing."""
    artifact = InputArtifact(folder, parts.artifact(root / "unused", "evaluation_sets").manifest)
    out = root / f"measured-{folder.name}"
    result = evaluate_data.run(
        parts.context_of(out, "evaluation_sets.evaluation", EvaluationSection(), {"artifact": artifact})
    )
    return dict(result.metrics), json.loads((out / "report.json").read_text())["missing"]


def test_held_out_rows_are_the_sets_where_there_is_no_corpus(tmp_path: Path, talk: Gather, judged: Gather) -> None:
    conversations = talk(*(talk_row(number) for number in range(60)), heldout=0.4)
    pairs = judged(
        *({"prompt": f"q {number}", "chosen": f"yes {number}", "rejected": "no"} for number in range(60)), heldout=0.4
    )
    inputs = {"conversations": conversations.artifact, "preferences": pairs.artifact}
    folder, result = build(tmp_path, inputs, conversations=10, preferences=5)

    rows, heldout = read(folder / "conversations.jsonl"), list(read_rows(conversations.folder / "heldout.parquet"))
    assert len(rows) == 10 and [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    by_id = {row["id"]: row for row in heldout}
    assert all(row["messages"] == json.loads(by_id[row["id"]]["messages"]) for row in rows)
    assert {tuple(row) for row in rows} == {("id", "messages", "source", "tools")}
    assert all(row["tools"] == [] and row["messages"][-1]["train"] for row in rows)
    own = read(folder / "pairs.jsonl")
    assert len(own) == 5
    assert all(len(row["prompt"]) == len(row["chosen"]) == len(row["rejected"]) == 1 for row in own)

    assert read(folder / "text.jsonl") == read(folder / "questions.jsonl") == read(folder / "preferences.jsonl") == []
    assert list(read_rows(folder / "exclusions.parquet")) == []
    assert (folder / "tasks" / "general_questions.jsonl").read_text() == ""
    assert (result.metrics["heldout_conversations"], result.metrics["heldout_pairs"]) == (10, 5)
    assert result.headline == "heldout_conversations"
    card = (folder / "report" / "card.md").read_text()
    assert "Of the recipe's own: 10 held-out conversations, 10 from s." in card
    assert len(json.loads((folder / "report" / "samples.json").read_text())) == 10
    metrics, _ = measured(folder, tmp_path)
    assert metrics == result.metrics


def test_a_smaller_set_is_a_part_of_the_larger_one(tmp_path: Path, talk: Gather) -> None:
    inputs = {"conversations": talk(*(talk_row(number) for number in range(60)), heldout=0.4).artifact}
    small, large = (
        {row["id"] for row in read(build(tmp_path, inputs, conversations=most)[0] / "conversations.jsonl")}
        for most in (5, 10)
    )
    assert len(small) == 5 and small < large


def test_equal_conversations_are_one_item(tmp_path: Path, talk: Gather) -> None:
    made = talk(*[talk_row(number) for number in range(20)] * 2, heldout=0.9, duplicates="keep")
    heldout = Counter(row["id"] for row in read_rows(made.folder / "heldout.parquet"))
    assert set(heldout.values()) == {2}
    folder, _ = build(tmp_path, {"conversations": made.artifact})
    assert len(read(folder / "conversations.jsonl")) == len(heldout)


def test_plain_text_is_no_conversation(tmp_path: Path, talk: Gather) -> None:
    made = talk(*({"text": f"A text {number}."} for number in range(20)), source={"format": "plain_text"}, heldout=0.5)
    assert len(list(read_rows(made.folder / "heldout.parquet"))) > 0
    folder, _ = build(tmp_path, {"conversations": made.artifact})
    assert read(folder / "conversations.jsonl") == []


def test_without_inputs_of_their_own_no_file_is_written(tmp_path: Path) -> None:
    corpus = parts.corpus_artifact(tmp_path / "corpus")
    folder, result = build(tmp_path, {"corpus": corpus})
    assert not (folder / "conversations.jsonl").exists() and not (folder / "pairs.jsonl").exists()
    assert "heldout_conversations" not in result.metrics and result.headline == "questions"
    metrics, missing = measured(folder, tmp_path)
    assert metrics["text_bytes"] > 0
    assert missing["heldout_conversations"] == missing["heldout_pairs"] == "the recipe has no source of them"


def test_a_training_document_that_holds_a_conversation_is_excluded(tmp_path: Path, talk: Gather) -> None:
    rows = [talk_row(number) for number in range(30)]
    for number, row in enumerate(rows):
        row["messages"][1]["content"] = f"{SENTENCE} {parts.text_of(number, 20)}"
    made = talk(*rows, heldout=0.5)
    held, *_ = read_rows(made.folder / "heldout.parquet")
    copied = json.loads(held["messages"])[1]["content"]
    texts = [copied, *(parts.text_of(number) for number in range(100, 110))]
    parts.write_corpus(tmp_path / "c", [parts.row_of(text) for text in texts], [parts.row_of(parts.text_of(200))])
    corpus = parts.artifact(tmp_path / "c", "corpus")
    folder, _ = build(tmp_path, {"corpus": corpus, "conversations": made.artifact})
    (row,) = [row for row in read_rows(folder / "exclusions.parquet") if row["item"] == held["id"]]
    assert (row["id"], row["reason"]) == (parts.row_of(copied)["id"], "held-out conversation")


def test_the_default_leaves_identities_as_they_were() -> None:
    assert "conversations" not in EvaluationSetsSection().identity_fields()
    assert EvaluationSetsSection(conversations=50).identity_fields()["conversations"] == 50


@pytest.mark.parametrize("empty", ["conversations", "preferences"])
def test_an_input_that_holds_nothing_out_gives_an_empty_set(
    tmp_path: Path, talk: Gather, judged: Gather, empty: str
) -> None:
    made = talk(talk_row(1)) if empty == "conversations" else judged({"prompt": "q", "chosen": "a", "rejected": "b"})
    folder, result = build(tmp_path, {empty: made.artifact})
    name = {"conversations": "conversations", "preferences": "pairs"}[empty]
    assert (folder / f"{name}.jsonl").read_text() == ""
    assert result.metrics[f"heldout_{name}"] == 0
    assert measured(folder, tmp_path)[0] == result.metrics


def test_without_written_prompts_their_sets_are_empty(tmp_path: Path, talk: Gather) -> None:
    made = talk(*(talk_row(number) for number in range(9)), heldout=0.5)
    out = tmp_path / "sets"
    context = parts.context_of(out, "evaluation_sets", EvaluationSetsSection(), {"conversations": made.artifact})
    assert evaluation_sets.run(context).metrics["harmful_prompts"] == 0
    assert read(out / "harmful.jsonl") == read(out / "benign.jsonl") == []
