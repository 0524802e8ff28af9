"""The gates of the mask, with a control for each: a mask that is off in one way fails one metric and no other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.conversations.chat_tokenizers import STYLES, write
from training.data.conversations.chat_format import ChatFormat, Conversation, Encoded
from training.data.conversations.chat_template import CHAT_TEMPLATE, TRAINING_TEMPLATE
from training.evaluation.masks import (
    METRICS,
    OTHER_ROLES,
    TEMPLATE,
    UNLEARNED_ENDS,
    UNLEARNED_ROWS,
    Lesson,
    mask_faults,
    measure_masks,
)
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact

CALL = {"id": "a00000001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Name a red fruit."},
    {"role": "assistant", "content": "Cherry.", "train": False},
    {"role": "user", "content": "And a blue one? <|im_end|> </s> <|end|> <end_of_turn>"},
    {"role": "assistant", "content": "  Plum. "},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "No <think> more."},
]
Mask = Callable[[Encoded], np.ndarray]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, built: dict[str, InputArtifact]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("styles")
    written = {name: write(root / name, *style()) for name, style in STYLES.items()}
    return {"own": built["tokenizer"].folder / "tokenizer", **written}


def measured(folder: Path, *talks: list[dict[str, Any]], texts: int = 0) -> Measurement:
    measurement = Measurement()
    lessons = [Lesson(f"row {number}", (Conversation(talk),)) for number, talk in enumerate(talks)]
    measure_masks(measurement, folder, lessons, texts)
    return measurement


def faults(measurement: Measurement) -> dict[str, float]:
    return {metric: estimate.value for metric, estimate in measurement.estimates.items() if estimate.value}


@pytest.mark.parametrize("style", ["own", *STYLES])
def test_a_sound_mask_has_no_fault(folders: dict[str, Path], style: str) -> None:
    measurement = measured(folders[style], TALK, TALK[:2] + TALK[4:], texts=3)
    assert faults(measurement) == {}
    assert measurement.items == []
    assert {metric: one.count for metric, one in measurement.estimates.items()} == {
        UNLEARNED_ROWS: 5,
        UNLEARNED_ENDS: 3,
        OTHER_ROLES: measurement.estimates[OTHER_ROLES].count,
        TEMPLATE: 2,
    }


def _one_place(encoded: Encoded, place: int, value: bool) -> np.ndarray:
    learned = encoded.learned.copy()
    learned[place] = value
    return learned


CONTROLS: dict[str, tuple[Mask, dict[str, int]]] = {
    "an end token is not learned": (
        lambda encoded: _one_place(encoded, encoded.turns[0].end - 1, False),
        {UNLEARNED_ENDS: 1, OTHER_ROLES: 0},
    ),
    "no end token is learned": (
        lambda encoded: (
            encoded.learned & ~np.isin(np.arange(len(encoded.ids)), [turn.end - 1 for turn in encoded.turns])
        ),
        {UNLEARNED_ENDS: 2, OTHER_ROLES: 0},
    ),
    "a whole answer is not learned": (
        lambda encoded: encoded.learned & (np.arange(len(encoded.ids)) >= encoded.turns[1].first),
        {UNLEARNED_ENDS: 1, OTHER_ROLES: 0},
    ),
    "a token of the user is learned": (
        lambda encoded: _one_place(encoded, encoded.turns[1].first - 7, True),
        {UNLEARNED_ENDS: 0, OTHER_ROLES: 1},
    ),
}


@pytest.mark.parametrize("style", ["own", *STYLES])
@pytest.mark.parametrize("control", CONTROLS)
def test_a_mask_that_is_off_is_found(folders: dict[str, Path], style: str, control: str) -> None:
    chat_format = ChatFormat.load(folders[style])
    conversation = Conversation(TALK)
    (encoded,) = chat_format.encode([conversation])
    mask, expected = CONTROLS[control]
    assert mask_faults(chat_format, conversation, replace(encoded, learned=mask(encoded))) == expected


@pytest.mark.parametrize("style", ["own", *STYLES])
def test_everything_learned_is_no_answer(folders: dict[str, Path], style: str) -> None:
    """Every turn is cut at its end token, and none of the user's says what an answer says."""
    chat_format = ChatFormat.load(folders[style])
    conversation = Conversation(TALK)
    (encoded,) = chat_format.encode([conversation])
    everything = replace(encoded, learned=np.ones(len(encoded.ids), np.bool_))
    assert mask_faults(chat_format, conversation, everything)[OTHER_ROLES] >= len(encoded.ids) / 2


def test_what_is_learned_of_a_tool_call_is_the_call(folders: dict[str, Path]) -> None:
    chat_format = ChatFormat.load(folders["qwen3"])
    talk = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    (encoded,) = chat_format.encode([Conversation(talk)])
    assert mask_faults(chat_format, Conversation(talk), encoded) == {UNLEARNED_ENDS: 0, OTHER_ROLES: 0}

    turned = replace(encoded, learned=~encoded.learned)
    assert mask_faults(chat_format, Conversation(talk), turned)[OTHER_ROLES] == (~encoded.learned).sum()


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": "Cherry.", "reasoning_content": "hm"},
    ],
)
@pytest.mark.parametrize("before", [1, 2, 5])
def test_a_mask_that_begins_in_the_heading_of_a_call_or_a_thought_is_found(
    folders: dict[str, Path], answer: dict[str, Any], before: int
) -> None:
    """Such an answer stands in the template's own words, so its text alone does not tell where it begins."""
    chat_format = ChatFormat.load(folders["qwen3"])
    conversation = Conversation([TALK[0], answer])
    (encoded,) = chat_format.encode([conversation])
    assert mask_faults(chat_format, conversation, encoded) == {UNLEARNED_ENDS: 0, OTHER_ROLES: 0}

    learned = encoded.learned.copy()
    first = encoded.turns[0].first
    learned[first - before : first] = True
    assert mask_faults(chat_format, conversation, replace(encoded, learned=learned))[OTHER_ROLES] > 0


def test_an_exported_template_with_marks_measures_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """Only transformers can parse them, and the folder is for everybody."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(folders["own"], folder)
    (folder / "chat_template.jinja").write_text(TRAINING_TEMPLATE)
    measurement = measured(folder, [TALK[0], TALK[3]])
    assert set(measurement.missing) == set(METRICS)
    assert "only transformers can parse" in measurement.missing[TEMPLATE]


def test_rows_that_teach_nothing_are_named(folders: dict[str, Path]) -> None:
    """One has no turn to learn, and of the other the template refuses a role."""
    taught_nothing = [TALK[0], {**TALK[1], "train": False}]
    refused = [{"role": "system", "content": "Be brief."}, TALK[0], {**TALK[1], "train": True}]
    measurement = measured(folders["gemma"], taught_nothing, TALK, refused)
    assert faults(measurement) == {UNLEARNED_ROWS: 2}
    reasons = {item["id"]: item["reason"] for item in measurement.items}
    assert "no turn of it is learned" in reasons["row 0"]
    assert "System role not supported" in reasons["row 2"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("{{- '\\n' -}}", "{{- '\\n\\n' -}}"), ("|trim", ""), ("'<|' ~ message['role'] ~ '|>", "'<|user|>")],
)
def test_another_template_in_the_folder_is_found(folders: dict[str, Path], tmp_path: Path, old: str, new: str) -> None:
    """Gatehouse's own tokenizer is encoded without its template; what a loader of the folder would see is compared."""
    assert old in CHAT_TEMPLATE
    folder = tmp_path / "tokenizer"
    shutil.copytree(folders["own"], folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace(old, new))

    measurement = measured(folder, [TALK[0], TALK[3]])
    assert faults(measurement) == {TEMPLATE: 1}
    (item,) = measurement.items
    assert "trained" in item["text"] and "exported" in item["text"]


def test_a_tokenizer_without_a_template_measures_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "bare", *STYLES["qwen2"]())
    (folder / "chat_template.jinja").unlink()
    measurement = measured(folder, TALK)
    assert set(measurement.missing) == set(METRICS)
    assert measurement.estimates == {}

    plain = measured(folder, texts=4)
    assert faults(plain) == {} and plain.estimates[UNLEARNED_ROWS].count == 4


def test_pairs_teach_both_answers(folders: dict[str, Path]) -> None:
    sides = tuple(Conversation([TALK[0], {"role": "assistant", "content": text}]) for text in ("Cherry.", "Plum."))
    measurement = Measurement()
    measure_masks(measurement, folders["own"], [Lesson("pair", sides)], 0)
    assert faults(measurement) == {}
    assert measurement.estimates[UNLEARNED_ROWS].count == 1
    assert measurement.estimates[UNLEARNED_ENDS].count == measurement.estimates[TEMPLATE].count == 2
