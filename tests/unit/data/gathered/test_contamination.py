from __future__ import annotations

import json

from training.data.conversations.contamination import Contamination, uncontaminated
from training.data.text.overlap import EvaluationItem, Overlap

SENTENCE = "the quick brown fox jumps over the lazy dog near the old river bank today"


def messages(*texts: str) -> str:
    return json.dumps(
        [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(texts)]
    )


def test_items_are_found_in_turns_across_turns_and_as_prompts() -> None:
    contamination = Contamination(
        [EvaluationItem("long", SENTENCE)], [EvaluationItem("short", "What is a fox?")], ngram=8, overlap=0.5
    )
    first, second = SENTENCE[:40], SENTENCE[40:]
    rows = [
        {"id": "clean", "messages": messages("Where is the fox?", "Here.")},
        {"id": "within", "messages": messages("Say it.", f"It is: {SENTENCE}.")},
        {"id": "across", "messages": messages(first, second)},
        {"id": "prompt", "messages": messages("what is a  FOX", "An animal.")},
        {"id": "answer", "messages": messages("Ask me.", "What is a fox?")},
        {
            "id": "pair",
            "prompt": messages("Say it."),
            "chosen": messages("", SENTENCE),
            "rejected": messages("", "No."),
        },
    ]
    holders: list[Overlap] = []
    assert [row["id"] for row in uncontaminated(rows, contamination, holders)] == ["clean", "answer"]
    assert {(overlap.document, overlap.item) for overlap in holders} == {
        ("within", "long"), ("across", "long"), ("prompt", "short"), ("pair", "long"),
    }  # fmt: skip
