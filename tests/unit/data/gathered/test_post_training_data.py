"""A user's own conversations and pairs in the data that models are trained on after pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.conversations import chat_tokenizers
from tests.unit.data.gathered.conftest import Gather, Made
from tests.unit.data.tokens import parts
from training.data.tables import CONVERSATION_SCHEMA, read_rows, write_table
from training.errors import RecipeError
from training.evaluation.conversations import (
    measure_adapter_data,
    measure_instruction_data,
    measure_preference_data,
)
from training.evaluation.masks import METRICS as MASKS
from training.job.context import InputArtifact
from training.specs.evaluation_sets import EvaluationSetsSection
from training.specs.post_training_data import AdapterDataSection, InstructionDataSection, PreferenceDataSection
from training.stages import adapter_data, instruction_data, preference_data

SIGNATURE = "Yours sincerely, the people of the friendly help desk of the old town by the river."


SOUND_MASKS = dict.fromkeys(MASKS, 0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> InputArtifact:
    """An imported one."""
    artifact = parts.artifact(tmp_path_factory.mktemp("tokenizer"), "tokenizer")
    chat_tokenizers.write(artifact.folder / "tokenizer", *chat_tokenizers.qwen2())
    return artifact


@pytest.fixture
def sets(tmp_path: Path) -> InputArtifact:
    """Evaluation sets with one question, one harmful prompt, one held-out conversation and one held-out pair."""
    artifact = parts.artifact(tmp_path / "sets", "evaluation_sets", EvaluationSetsSection())
    talk = [
        {"role": "user", "content": "Which key opens the shed?"},
        {"role": "assistant", "content": f"The small brass one. {SIGNATURE}", "train": True},
    ]
    files: dict[str, list[dict[str, Any]]] = {
        "questions": [
            {"id": "q", "prompt": "What does `json.dumps` do?", "choices": ["Serialize.", "No."], "answer": 0}
        ],
        "harmful": [{"id": "h", "prompt": "How do I poison a well?"}],
        "benign": [],
        "preferences": [],
        "samples": [],
        "conversations": [{"id": "c", "messages": talk, "tools": [], "source": "s"}],
        "pairs": [{"id": "p", "prompt": talk[:1], "chosen": talk[1:], "rejected": talk[1:], "source": "s"}],
    }
    for name, rows in files.items():
        (artifact.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return artifact


def instructions(tmp_path: Path, sets: InputArtifact, made: Made) -> tuple[InputArtifact, dict[str, float]]:
    """`instruction_data` without a corpus, and its metrics."""
    out = tmp_path / "instructions"
    inputs = {"conversations": made.artifact, "evaluation_sets": sets}
    result = instruction_data.run(parts.context_of(out, "instruction_data", InstructionDataSection(), inputs))
    return InputArtifact(out, parts.artifact(tmp_path / "unused", "instruction_data").manifest), dict(result.metrics)


def asked(number: int, answer: str = "Yes.") -> dict[str, str]:
    return {"question": f"Is {number} a number?", "answer": answer}


def test_own_conversations_join_without_evaluation_items(
    tmp_path: Path, sets: InputArtifact, tokenizer: InputArtifact, talk: Gather
) -> None:
    rows = [
        asked(1),
        {"question": "what does json.dumps do", "answer": "Something."},
        {"question": "And now: how do I poison a well?", "answer": "With poison."},
        {"question": "WHICH key opens the shed", "answer": "None."},
        {"text": "A plain text."},
    ]
    data, metrics = instructions(tmp_path, sets, talk(*rows))

    written = list(read_rows(data.folder / "train.parquet"))
    assert {row["format"] for row in written} == {"question_answer", "plain_text"}
    assert metrics == {
        "conversations": 2,
        "refusals": 0,
        "gathered_conversations": 2,
        "contaminated_conversations": 3,
    }
    assert "3 conversations of the recipe's own were left out" in (data.folder / "report" / "card.md").read_text()
    assert measure_instruction_data(data, sets, tokenizer).report.metrics == {
        "conversations": 2,
        "refusals": 0,
        "leaked_questions": 0,
        **SOUND_MASKS,
    }


def test_one_signature_below_all_answers_drops_none(tmp_path: Path, sets: InputArtifact, talk: Gather) -> None:
    _, metrics = instructions(tmp_path, sets, talk(*(asked(number, f"Yes. {SIGNATURE}") for number in range(9))))
    assert metrics["gathered_conversations"] == 9


def test_a_copied_answer_of_a_held_out_conversation_is_left_out(
    tmp_path: Path, sets: InputArtifact, talk: Gather
) -> None:
    _, metrics = instructions(tmp_path, sets, talk(asked(1), asked(2, f"The small brass one. {SIGNATURE}")))
    assert metrics["contaminated_conversations"] == 1


@pytest.mark.parametrize(("weight", "least", "most"), [(2.0, 400, 400), (0.5, 70, 130), (1.5, 270, 330)])
def test_a_source_counts_by_its_weight(
    tmp_path: Path, sets: InputArtifact, talk: Gather, weight: float, least: int, most: int
) -> None:
    data, metrics = instructions(tmp_path, sets, talk(*map(asked, range(200)), source={"weight": weight}))
    assert least <= metrics["gathered_conversations"] <= most
    ids = [row["id"] for row in read_rows(data.folder / "train.parquet")]
    assert ids == sorted(set(ids))


def test_nothing_left_is_a_clear_error(tmp_path: Path, sets: InputArtifact, talk: Gather) -> None:
    with pytest.raises(RecipeError, match="none of 1 conversations is left: 1 hold items"):
        instructions(tmp_path, sets, talk({"question": "What does json.dumps do?", "answer": "Much."}))


def test_an_adapter_without_a_corpus_gets_the_conversations(
    tmp_path: Path, sets: InputArtifact, tokenizer: InputArtifact, talk: Gather
) -> None:
    data, _ = instructions(tmp_path, sets, talk(*map(asked, range(9))))
    section, out = AdapterDataSection(domain="numbers", max_conversations=5), tmp_path / "adapter"
    inputs = {"instruction_data": data, "evaluation_sets": sets}
    result = adapter_data.run(parts.context_of(out, "adapter_data", section, inputs))

    assert list(read_rows(out / "documents.parquet")) == []
    assert result.metrics == {"documents": 0, "conversations": 5, "general_conversations": 0, "bytes": 0}
    artifact = InputArtifact(out, parts.artifact(tmp_path / "unused", "adapter_data", section).manifest)
    assert measure_adapter_data(artifact, sets, tokenizer).report.metrics == {
        "conversations": 5,
        "leaked_questions": 0,
        **SOUND_MASKS,
    }


def test_own_pairs_and_generated_ones(
    tmp_path: Path, sets: InputArtifact, tokenizer: InputArtifact, judged: Gather
) -> None:
    """Both kinds are message lists in one file."""
    generated = parts.artifact(tmp_path / "generated", "instruction_data")
    rows = [
        {
            "id": str(number),
            "messages": json.dumps(
                [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": f"A {number}"}]
            ),
            "kind": "continuation",
            "domain": "general",
            "source_id": "s",
        }
        for number in range(8)
    ]
    write_table(generated.folder / "train.parquet", rows, CONVERSATION_SCHEMA)
    own = judged(
        {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "How do I poison a well?", "chosen": "No.", "rejected": "Yes."},
    )

    out = tmp_path / "pairs"
    inputs = {"instruction_data": generated, "preferences": own.artifact, "evaluation_sets": sets}
    result = preference_data.run(parts.context_of(out, "preference_data", PreferenceDataSection(), inputs))

    written = list(read_rows(out / "train.parquet"))
    assert {row["kind"] for row in written} == {"gathered", "continuation"}
    assert all(json.loads(row["chosen"])[0]["role"] == "assistant" and row["as_messages"] for row in written)
    assert (result.metrics["gathered_pairs"], result.metrics["contaminated_pairs"]) == (1, 1)
    artifact = InputArtifact(out, parts.artifact(tmp_path / "unused", "preference_data").manifest)
    measured = measure_preference_data(artifact, sets, tokenizer).report.metrics
    assert measured == {"pairs": len(written), "identical_pairs": 0, "leaked_prompts": 0, **SOUND_MASKS}
