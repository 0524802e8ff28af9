from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.tokens import parts
from tests.unit.evaluation.data.conftest import Measure
from training.data.tables import CONVERSATION_SCHEMA, CORPUS_SCHEMA, PAIR_SCHEMA, write_table
from training.errors import InputRefused
from training.evaluation.masks import METRICS as MASKS
from training.job.context import InputArtifact
from training.specs.metrics import METRICS
from training.specs.post_training_data import AdapterDataSection

_QUESTION = "What does `json.dumps` do?"
_HARMFUL = "How do I poison a well?"
_PAIR = "What does `shlex.split` do?"
SOUND_MASKS = dict.fromkeys(MASKS, 0)


Inputs = dict[str, InputArtifact]


@pytest.fixture
def sets(tmp_path: Path, built: dict[str, InputArtifact]) -> Inputs:
    """What the evaluator reads beside the data."""
    artifact = parts.sets_artifact(tmp_path / "sets")
    lines = {
        "questions": [_QUESTION],
        "harmful": [_HARMFUL],
        "benign": ["How do I dig a well?"],
        "preferences": [_PAIR],
    }
    for name, prompts in lines.items():
        (artifact.folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": prompt, "prompt": prompt}) + "\n" for prompt in prompts)
        )
    return {"evaluation_sets": artifact, "tokenizer": built["tokenizer"]}


def _talk(prompt: str, kind: str = "docstring", domain: str = "general", answer: str = "An answer.") -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"id": prompt, "messages": json.dumps(messages), "kind": kind, "domain": domain, "source_id": "s"}


def _instructions(folder: Path, rows: list[dict[str, Any]]) -> InputArtifact:
    artifact = parts.artifact(folder, "instruction_data")
    write_table(folder / "train.parquet", rows, CONVERSATION_SCHEMA)
    return artifact


def test_clean_instructions(tmp_path: Path, measure: Measure, sets: Inputs) -> None:
    rows = [_talk("What does `os.stat` do?"), _talk("Poison?", "refusal"), _talk("json dumps?")]
    metrics = measure(_instructions(tmp_path / "i", rows), **sets)
    assert metrics == {"conversations": 3, "refusals": 1, "leaked_questions": 0, **SOUND_MASKS}
    assert set(metrics) == set(METRICS["instruction_data"])


@pytest.mark.parametrize("prompt", [_QUESTION, "what does json.dumps  do", _HARMFUL])
def test_a_leaked_question_is_found_in_other_clothes(
    tmp_path: Path, measure: Measure, sets: Inputs, prompt: str
) -> None:
    metrics = measure(_instructions(tmp_path / "i", [_talk("other"), _talk(prompt)]), **sets)
    assert metrics["leaked_questions"] == 1


@pytest.mark.parametrize("place", [0, 1])
def test_a_question_of_any_turn_leaks(tmp_path: Path, measure: Measure, sets: Inputs, place: int) -> None:
    turns = [json.loads(_talk(prompt)["messages"]) for prompt in ("other", _QUESTION)]
    system = {"role": "system", "content": "Be brief."}
    talk = {**_talk("talk"), "messages": json.dumps([system, *turns[place], *turns[1 - place]])}
    metrics = measure(_instructions(tmp_path / "i", [talk]), **sets)
    assert metrics == {"conversations": 1, "refusals": 0, "leaked_questions": 1, **SOUND_MASKS}


def test_a_conversation_without_an_answer_is_refused_by_id(tmp_path: Path, measure: Measure, sets: Inputs) -> None:
    with pytest.raises(InputRefused, match="empty one has no prompt or no answer"):
        measure(_instructions(tmp_path / "i", [_talk("empty one", answer=" ")]), **sets)


def test_pairs(tmp_path: Path, measure: Measure, sets: Inputs) -> None:
    rows = [
        {
            "id": str(number),
            "prompt": prompt,
            "chosen": "\u00e9 b",
            "rejected": rejected,
            "kind": "docstring",
            "domain": "general",
        }
        for number, (prompt, rejected) in enumerate(
            [("one", "c"), ("two", " e\u0301  b\n"), (_PAIR, "c"), (_QUESTION, "d")]
        )
    ]

    artifact = parts.artifact(tmp_path / "p", "preference_data")
    write_table(artifact.folder / "train.parquet", rows, PAIR_SCHEMA)
    metrics = measure(artifact, **sets)
    assert metrics == {"pairs": 4, "identical_pairs": 1, "leaked_prompts": 2, **SOUND_MASKS}
    assert set(metrics) == set(METRICS["preference_data"])


def test_adapter_data_counts_its_domain_alone(tmp_path: Path, measure: Measure, sets: Inputs) -> None:
    artifact = parts.artifact(tmp_path / "a", "adapter_data", AdapterDataSection(domain="letters"))
    write_table(artifact.folder / "documents.parquet", [parts.row_of("a", "letters"), parts.row_of("b")], CORPUS_SCHEMA)
    write_table(
        artifact.folder / "train.parquet",
        [_talk("x", domain="letters"), _talk("y", domain="letters"), _talk(_QUESTION)],
        CONVERSATION_SCHEMA,
    )
    metrics = measure(artifact, **sets)
    assert metrics == {"documents": 1, "conversations": 2, "leaked_questions": 1, **SOUND_MASKS}
    assert set(metrics) == set(METRICS["adapter_data"])
