"""Judged answers of every form, and what is no judgement."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.gathered.conftest import Gather, lines, refusal
from training.data.conversations.preference_formats import split_transcripts
from training.data.tables import GATHERED_PAIR_SCHEMA, read_rows, write_table
from training.specs.conversations import PreferenceSource


def said(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def answers(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def judge(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


GREETING = "\n\nHuman: h\n\nAssistant: i"
HH = {
    "chosen": "\n\nHuman: may I?\n\nAssistant: Yes, go on.",
    "rejected": "\n\nHuman: may I?\n\nAssistant: Yesterday you could.",
}


def test_transcripts_are_cut_after_the_last_assistant_that_both_share(judged: Gather) -> None:
    assert split_transcripts(HH["chosen"], HH["rejected"]) == (
        "\n\nHuman: may I?\n\nAssistant:",
        " Yes, go on.",
        " Yesterday you could.",
    )
    start = "\n\nHuman: q\n\nAssistant:"
    assert split_transcripts(f"{start} ok then", f"{start} ok") == (start, " ok then", " ok")

    longer = {key: f"\n\nHuman: hi\n\nAssistant: hello{text}" for key, text in HH.items()}
    rows = judged(HH, longer).rows
    assert said(rows[0]["prompt"]) == [("user", "may I?")]
    assert said(rows[1]["prompt"]) == [("user", "hi"), ("assistant", "hello"), ("user", "may I?")]
    assert answers(rows) == [("Yes, go on.", "Yesterday you could.")] * 2
    assert [message.get("train") for message in rows[1]["prompt"]] == [None, False, None]
    assert [message["train"] for message in rows[1]["chosen"]] == [True]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: x"),
        (f"{GREETING}\n\nHuman: a\n\nAssistant: x", f"{GREETING}\n\nHuman: b\n\nAssistant: x"),
        ("yes", "no"),
        ([user("a"), bot("x")], [user("b"), bot("y")]),
        ([user("a"), bot("x"), user("b"), bot("y")], [user("a"), bot("x"), user("c"), bot("z")]),
    ],
)  # fmt: skip
def test_pairs_whose_prompts_differ_are_refused_by_number(judged: Gather, chosen: Any, rejected: Any) -> None:
    message = refusal(judged, HH, {"chosen": chosen, "rejected": rejected})
    assert "a.jsonl:2: the prompts of chosen and rejected differ" in message


MIXED: list[tuple[dict[str, Any], str, list[tuple[str, str]], list[tuple[str, str]]]] = [
    (judge("q1", "a", "b"), "prompted", [("user", "q1")], [("a", "b")]),
    (
        {"prompt": [user("h"), bot("i"), user("q2")], "chosen": [bot("a")], "rejected": [bot("b")], "system": "s"},
        "prompted",
        [("system", "s"), ("user", "h"), ("assistant", "i"), ("user", "q2")],
        [("a", "b")],
    ),
    (
        {"prompt": "q3", "chosen": [user("q3"), bot("a")], "rejected": [user("q3"), bot("b")]},
        "prompted",
        [("user", "q3")],
        [("a", "b")],
    ),
    (
        {"prompt": "\n\nHuman: q4\n\nAssistant:", "chosen": "a", "rejected": "b"},
        "prompted",
        [("user", "q4")],
        [("a", "b")],
    ),
    (
        {
            "chosen": [user("h"), bot("i"), user("q5"), bot("a")],
            "rejected": [user("h"), bot("i"), user("q5"), bot("b")],
        },
        "implicit_prompt",
        [("user", "h"), ("assistant", "i"), ("user", "q5")],
        [("a", "b")],
    ),
    (HH, "transcripts", [("user", "may I?")], [("Yes, go on.", "Yesterday you could.")]),
    (
        {"prompt": "q6", "ranked": ["a", "b", "c"]},
        "ranked",
        [("user", "q6")],
        [("a", "b"), ("a", "c"), ("b", "c")],
    ),
    (
        {"prompt": "q7", "responses": ["b", "a"], "scores": [1, 2.5]},
        "ranked",
        [("user", "q7")],
        [("a", "b")],
    ),
]


def test_a_mixed_file_is_read_row_by_row_and_each_format_counted(judged: Gather) -> None:
    labelled = [{"prompt": "q8", "completion": text, "label": label} for text, label in (("a", True), ("b", False))]
    made = judged(*(row for row, *_ in MIXED), *labelled)
    expected = [(name, prompt, pair) for _, name, prompt, pairs in MIXED for pair in pairs]
    expected.append(("labelled", [("user", "q8")], ("a", "b")))
    rows = [(row["format"], said(row["prompt"]), pair) for row, pair in zip(made.rows, answers(made.rows), strict=True)]
    assert rows == expected
    counts = Counter(name for name, _, _ in expected)
    assert {name: made.metrics[f"{name}_pairs"] for name in counts} == counts
    assert made.measured() == {
        "pairs": len(expected),
        "heldout_pairs": 0,
        "bad_rows": 0,
        "prompts_in_both_splits": 0,
        "identical_pairs": 0,
        "contradictions": 0,
        "dropped_share": 0,
    }


def test_ranked_lists_with_ties_and_with_one_answer(judged: Gather) -> None:
    made = judged(
        {"prompt": "p", "ranked": ["a", "b", "c"]},
        {"prompt": "tie", "ranked": ["a", "b", "c"], "scores": [2, 1, 1]},
        {"prompt": "one", "ranked": ["a"]},
    )
    assert answers(made.rows) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b"), ("a", "c")]
    assert made.dropped == [("a.jsonl:3", "no answer to compare with")]


def test_all_pairs_of_one_prompt_are_on_one_side_of_the_split(judged: Gather) -> None:
    rows = [
        {"prompt": f"{word} {number}", "ranked": ["a", "b", "c"]} for number in range(60) for word in ("Why", "WHY ")
    ]
    made = judged(*rows, heldout=0.4)
    metrics = made.measured()
    assert metrics["prompts_in_both_splits"] == 0
    assert metrics["heldout_pairs"] % 3 == 0
    assert 0 < metrics["heldout_pairs"] < 180
    assert metrics["dropped_share"] == 0.5, "the second spelling of a prompt gives the same pairs"

    heldout, train = (list(read_rows(made.folder / f"{split}.parquet")) for split in ("heldout", "train"))
    damaged = [{**train[0], "chosen": train[0]["rejected"], "rejected": train[0]["chosen"]}, heldout[0]]
    same = {**train[1], "rejected": train[1]["chosen"].replace('"a"', '" a\\n"')}
    write_table(made.folder / "train.parquet", [*train, *damaged, same], GATHERED_PAIR_SCHEMA)
    (made.folder.parent / f"{made.folder.name}-evaluation").rename(made.folder.parent / "first")
    again = made.measured()
    assert again["prompts_in_both_splits"] == 1
    assert again["contradictions"] == 2
    assert again["identical_pairs"] == 1
    assert again["bad_rows"] == 2


def test_equal_answers_are_counted_out_and_many_of_them_refused(judged: Gather) -> None:
    rows = [judge(f"q{number}", "a", "b") for number in range(19)]
    made = judged(*rows, judge("same", "e\u0301  b", " \u00e9 b\n"))
    assert made.dropped == [("a.jsonl:20", "identical answers")]
    assert made.metrics["dropped_identical_answers"] == 1
    message = refusal(judged, *rows[:3], judge("same", "a", "a "))
    assert "1 of 4 pairs have the same answer twice" in message
    assert "a.jsonl:4" in message
    equal = "\n\nHuman: q\n\nAssistant: same"
    assert "a.jsonl:1" in refusal(judged, {"chosen": equal, "rejected": equal})
    whole = [user("q"), bot("same")]
    assert "a.jsonl:1" in refusal(judged, {"chosen": whole, "rejected": whole})


def test_empty_answers_are_counted_out(judged: Gather) -> None:
    made = judged(judge("q1", "a", " "), judge("q2", "", "b"), judge("q3", "a", "b"))
    assert made.dropped == [("a.jsonl:1", "empty answer"), ("a.jsonl:2", "empty answer")]


def test_opposite_judgements_of_one_prompt(judged: Gather) -> None:
    rows = [judge("Why?", "a", "b"), judge("other", "a", "b"), judge("why? ", "b", " a")]
    message = refusal(judged, *rows)
    assert "a.jsonl:3 prefer opposite" in message or "a.jsonl:1 prefer opposite" in message
    assert "preference_options.contradictions: drop" in message
    made = judged(*rows, contradictions="drop")
    assert answers(made.rows) == [("a", "b")]
    assert made.metrics["dropped_contradiction"] == 2

    labels = [{"prompt": "q", "completion": text, "label": label} for text, label in (("a", 1), ("a ", 0), ("b", 0))]
    labels.append({"prompt": "q", "completion": "c", "label": 1})
    assert "label the same answer to one prompt as good and as bad" in refusal(judged, *labels)
    made = judged(*labels, contradictions="drop")
    assert answers(made.rows) == [("c", "b")]
    assert made.metrics["dropped_contradiction"] == 2


def label(prompt: str, text: str, word: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": text, "label": word}


def test_single_answers_make_pairs_where_one_prompt_has_both_kinds(judged: Gather) -> None:
    made = judged(
        label("q", "a", True),
        label("q", "b", False),
        label("q", "c", 0),
        label("alone", "x", 1),
        label("q", "a", "true"),
    )
    assert answers(made.rows) == [("a", "b"), ("a", "c")]
    assert sorted(made.dropped) == [("a.jsonl:4", "no opposite answer"), ("a.jsonl:5", "duplicate")]
    assert "single answers with a label that no pair holds: 1" in (made.folder / "report" / "card.md").read_text()


def test_labels_as_words_are_mapped_and_unknown_ones_listed(judged: Gather) -> None:
    words = ["good", "1", True, 0.7]
    rows = [label("q", f"a{number}", word) for number, word in enumerate(words)] + [label("q", "b", "Bad")]
    source = {"labels": {"good": True, 1: True, "true": True, "0.7": True, "bad": False}}
    assert PreferenceSource(name="s", path="x", **source).labels["1"] is True
    assert len(judged(*rows, source=source).rows) == 4

    message = refusal(judged, *rows)
    assert "a.jsonl:1: the label 'good' is not known; seen are good (1), 1 (1), true (1), 0.7 (1), bad (1)" in message
    assert "Say in labels of the source s which of them are true and which false" in message
    made = judged(*rows, label("q", "c", 0), on_bad_row="skip")
    assert made.metrics["bad_rows"] == 3
    assert len(made.skipped) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "prompt": "q"}, "is in no known format of preferences; its keys are chosen, prompt"),
        ({"prompt": "q", "ranked": "a"}, "ranked is text, not a list"),
        ({"prompt": "q", "ranked": ["a", "b"], "scores": [1]}, "scores has 1 numbers, and there are 2 answers"),
        ({"prompt": "q", "ranked": ["a", "b"], "scores": [1, "x"]}, "scores holds text 'x'"),
        ({"prompt": "q", "completion": "a", "label": ["good"]}, "label is a list"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "chosen (null)"),
        ({"prompt": [bot("x")], "chosen": "a", "rejected": "b"}, "does not end with a question"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]}, "has tools"),
        ({"prompt": "q", "chosen": 1, "rejected": 2}, "chosen is int, not text"),
        ({"prompt": "p", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}, "begin with the prompt"),
    ],
)
def test_a_row_that_is_no_judgement_is_named_or_skipped(
    judged: Gather, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = lines(tmp_path / "b.jsonl", HH, row)
    text = refusal(judged, path=path)
    assert f"{path}:2: " in text
    assert message in text
    assert judged(path=path, on_bad_row="skip").metrics["bad_rows"] == 1


def test_running_again_gives_the_same_bytes_and_a_report(judged: Gather) -> None:
    first, second = (judged(*(row for row, *_ in MIXED)) for _ in range(2))
    assert (first.folder / "train.parquet").read_bytes() == (second.folder / "train.parquet").read_bytes()
    samples = json.loads((first.folder / "report" / "samples.json").read_text())
    assert samples[0] == {
        "source": "s", "where": "a.jsonl:1", "format": "prompted",
        "prompt": "user: q1", "chosen": "assistant: a", "rejected": "assistant: b",
    }  # fmt: skip
