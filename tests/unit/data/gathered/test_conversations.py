"""Conversations of every form, and what is no conversation."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.unit.data.gathered.conftest import Gather, lines, refusal
from training.data.sources import bad_rows, readers
from training.data.tables import GATHERED_CONVERSATION_SCHEMA, read_rows, write_table
from training.specs.conversations import ConversationSource, ConversationsSection

WEATHER = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}


def pair(prompt: str, answer: str = "a") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["messages"]]


def learned(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"] if message.get("train")]


def test_sharegpt_by_both_names_of_the_roles_keeps_every_row(talk: Gather) -> None:
    made = talk(
        {"conversations": [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}]},
        {"conversations": [{"from": "user", "value": "q2"}, {"from": "assistant", "value": "a2"}]},
        {"conversations": [{"from": "human", "value": "q3"}, {"from": "gpt", "value": "a3"}]},
    )
    assert [learned(row) for row in made.rows] == [["a1"], ["a2"], ["a3"]]
    assert made.metrics["sharegpt_rows"] == 3
    assert [row["where"] for row in made.rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]


def test_an_unknown_speaker_is_an_error_with_file_and_row(talk: Gather) -> None:
    good = {"conversations": [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}]}
    message = refusal(talk, good, {"conversations": [{"from": "human", "value": "q"}, {"from": "bot", "value": "a"}]})
    assert "a.jsonl:2: conversations: message 2 is from 'bot'; known are system, human" in message
    assert "conversation_options.on_bad_row: skip" in message


def test_tool_arguments_and_tools_keep_their_own_keys_in_their_own_order(talk: Gather) -> None:
    def row(prompt: str, arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        tool = {"type": "function", "function": {"name": "f", "parameters": {"z": {}, "a": None, prompt: 1}}}
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": messages, "tools": [tool]}

    made = talk(row("one", {"city": "Oslo"}), row("two", {"x": 1, "b": None}), row("three", '{"x": 1, "b": null}'))
    texts = [row["messages"] for row in read_rows(made.folder / "train.parquet", ["messages"])]
    assert '"arguments":{"city":"Oslo"}' in texts[0]
    assert '"arguments":{"x":1,"b":null}' in texts[1]
    assert texts[2] == texts[1].replace("two", "three"), "a JSON text gives the same as an object"
    assert '"parameters":{"z":{},"a":null,"one":1}' in made.rows[0]["tools"]


def test_nulls_that_arrow_adds_are_no_keys(talk: Gather, tmp_path: Path) -> None:
    rows = []
    for prompt, arguments in (("one", {"city": "Oslo"}), ("two", {"x": 1})):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        rows.append(
            {
                "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "tool_calls": [call]}],
                "note": None,
            }
        )
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "b.parquet")
    feather.write_feather(table, str(tmp_path / "b.feather"))
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)

    for name in ("b.parquet", "b.feather", "b.arrow"):
        made = talk(path=tmp_path / name)
        calls = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in made.rows]
        assert calls == [{"city": "Oslo"}, {"x": 1}], name
        assert [row["where"] for row in made.rows] == [f"{name}:1", f"{name}:2"]


def test_null_content_is_empty_with_a_call_and_refused_by_number_without(talk: Gather) -> None:
    asked = {"role": "user", "content": "Weather?"}
    made = talk({"messages": [asked, {"role": "assistant", "content": None, "tool_calls": [WEATHER]}]})
    assert made.rows[0]["messages"][1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{**WEATHER, "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}],
        "train": True,
    }
    message = refusal(talk, {"messages": [asked, {"role": "assistant", "content": None}]})
    assert "a.jsonl:1: messages: message 2 has neither content nor a tool call" in message


def test_parts_of_text_are_joined_and_others_refused(talk: Gather) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turns(talk(pair("q", parts)).rows[0]) == [("user", "q"), ("assistant", "ab")]  # type: ignore[arg-type]
    message = refusal(talk, pair([{"type": "image_url", "image_url": {}}]))  # type: ignore[arg-type]
    assert "a.jsonl:1: messages: message 1 has a part of type image_url" in message


MIXED: list[tuple[dict[str, Any], str, list[tuple[str, str]]]] = [
    (
        {"messages": [{"role": "developer", "content": "Be brief."}, *pair("q1")["messages"]]},
        "messages",
        [("system", "Be brief."), ("user", "q1"), ("assistant", "a")],
    ),
    (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q2"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "a2"},
            ]
        },
        "sharegpt",
        [("system", "s"), ("user", "q2"), ("assistant", ""), ("tool", "7"), ("assistant", "a2")],
    ),
    (
        {"instruction": "q3", "input": "", "output": "a3", "system": "s"},
        "alpaca",
        [("system", "s"), ("user", "q3"), ("assistant", "a3")],
    ),
    (
        {"instruction": "q4", "input": "more", "output": "a4", "history": [["h", "i"]]},
        "alpaca",
        [("user", "h"), ("assistant", "i"), ("user", "q4\n\nmore"), ("assistant", "a4")],
    ),
    ({"prompt": "q5", "completion": " a5"}, "prompt_completion", [("user", "q5"), ("assistant", " a5")]),
    (
        {"prompt": [{"role": "user", "content": "q6"}], "completion": [{"role": "assistant", "content": "a6"}]},
        "prompt_completion",
        [("user", "q6"), ("assistant", "a6")],
    ),
    ({"prompt": "[1, 2]?", "completion": "a7"}, "prompt_completion", [("user", "[1, 2]?"), ("assistant", "a7")]),
    ({"question": "q8", "answer": "a8"}, "question_answer", [("user", "q8"), ("assistant", "a8")]),
    ({"text": "A text."}, "plain_text", [("assistant", "A text.")]),
]


def test_a_mixed_file_is_read_row_by_row_and_each_format_counted(talk: Gather) -> None:
    made = talk(*(row for row, _, _ in MIXED))
    assert [(row["format"], turns(row)) for row in made.rows] == [(name, said) for _, name, said in MIXED]
    counts = Counter(name for _, name, _ in MIXED)
    assert {name: made.metrics[f"{name}_rows"] for name in counts} == counts
    assert all("train" in message for row in made.rows for message in row["messages"] if message["role"] == "assistant")
    assert made.rows[1]["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "is in no known format of conversations; its keys are text (null)"),
        ({"foo": 1, "bar": "x"}, "its keys are bar, foo"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "messages is text, not a list"),
        ({"messages": ["hello"]}, "messages: message 1 is text, not an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "has the role 'robot'; known are system"),
        ({"messages": [{"content": "x"}]}, "has no role, only content"),
        (["x"], "is a JSON list, not an object"),
        ({"prompt": "q", "completion": 5}, "completion is int, not text"),
        ({"question": "q", "answer": "a\0"}, "answer holds NUL"),
        ({"question": "q", "answer": "\ud800"}, "half of a surrogate pair"),
        ({"instruction": "q", "output": {"a": 1}}, "output is an object, not text"),
        ({"messages": [*pair("q")["messages"], {"role": "tool", "content": "x", "tool_calls": [WEATHER]}]}, "only the"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "weight is 0.5"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "a tool call names no function"),
    ],
)
def test_a_row_that_is_no_conversation_is_named_or_skipped(
    talk: Gather, tmp_path: Path, row: Any, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"text": "hello"}, row, pair("q9")])) + "\n")
    text = refusal(talk, path=path)
    assert f"{path}:2: " in text
    assert message in text
    made = talk(path=path, on_bad_row="skip")
    assert (made.metrics["bad_rows"], len(made.rows)) == (1, 2)
    assert made.measured()["bad_rows"] == 1


def test_columns_have_the_names_that_the_recipe_says(talk: Gather) -> None:
    row = {"data": {"q": "Why?", "a": "So."}, "prompt": "not this", "id": 7}
    made = talk(row, source={"columns": {"question": "data.q", "answer": "data.a"}})
    assert turns(made.rows[0]) == [("user", "Why?"), ("assistant", "So.")]
    message = refusal(talk, row, source={"columns": {"question": "data.q", "answer": "data.b"}})
    assert "its keys are data.a, data.q, id, prompt; columns names data.b, which it lacks" in message
    with pytest.raises(ValueError, match="columns has no key answr; did you mean answer"):
        ConversationSource(name="s", path="x", columns={"answr": "a"})


def test_turns_with_a_weight_of_their_own(talk: Gather) -> None:
    fruit: list[dict[str, Any]] = [
        {"role": "user", "content": "Name a red fruit."},
        {"role": "assistant", "content": "Cherry.", "weight": 0},
        {"role": "user", "content": "And a blue one?"},
        {"role": "assistant", "content": "Plum.", "weight": 1},
    ]
    assert learned(talk({"messages": fruit}).rows[0]) == ["Plum."]
    made = talk({"messages": [{**message, "weight": 0} for message in fruit]}, pair("q"))
    assert made.dropped == [("a.jsonl:1", "nothing to learn")]
    plain = [{key: message[key] for key in ("role", "content")} for message in fruit]
    assert learned(talk({"messages": plain}).rows[0]) == ["Cherry.", "Plum."]
    assert learned(talk({"messages": plain}, train="last").rows[0]) == ["Plum."]


def test_a_completion_of_several_turns_learns_the_assistants_alone(talk: Gather) -> None:
    history = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
    turns_ = [
        {"role": "assistant", "content": "a1"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "a2"},
    ]
    made = talk({"prompt": [*history, {"role": "user", "content": "q1"}], "completion": turns_})
    assert learned(made.rows[0]) == ["a1", "a2"]


USER_TWICE = {"messages": [{"role": "user", "content": "q"}, *pair("more")["messages"]]}
ASSISTANT_FIRST = {"messages": [{"role": "assistant", "content": "Hi"}, *pair("q")["messages"]]}


@pytest.mark.parametrize(
    ("row", "reason", "merged"),
    [
        (USER_TWICE, "a role repeats", [("user", "q\n\nmore"), ("assistant", "a")]),
        (ASSISTANT_FIRST, "begins with the assistant", [("user", "q"), ("assistant", "a")]),
    ],
)
def test_roles_out_of_order_go_by_the_rule(
    talk: Gather, row: dict[str, Any], reason: str, merged: list[tuple[str, str]]
) -> None:
    message = refusal(talk, row)
    assert f"a.jsonl:1: {reason}" in message
    assert "set roles of the recipe's conversations to merge or drop" in message
    assert talk(row, pair("other"), roles="drop").dropped == [("a.jsonl:1", reason)]
    assert turns(talk(row, roles="merge").rows[0]) == merged


def test_empty_answers_and_open_questions(talk: Gather) -> None:
    opened = {"messages": [*pair("q2")["messages"], {"role": "user", "content": "still there?"}]}
    made = talk(pair("q1", " \n"), opened, {"messages": [{"role": "user", "content": "alone"}]})
    assert made.dropped == [("a.jsonl:1", "empty answer"), ("a.jsonl:3", "no answer")]
    assert turns(made.rows[0]) == [("user", "q2"), ("assistant", "a")]
    assert "a.jsonl:1: message 2 is an empty answer" in refusal(talk, pair("q", " "), empty_answers="refuse")
    assert made.measured()["dropped_share"] == pytest.approx(2 / 3)


def test_duplicates_by_prompt_are_counted(talk: Gather) -> None:
    rows = [pair("Why  not?", "one"), pair("why not?\n", "two"), pair("why not?", "two"), pair("other", "one")]
    assert talk(*rows).dropped == [("a.jsonl:2", "duplicate"), ("a.jsonl:3", "duplicate")]
    assert len(talk(*rows, duplicates="keep").rows) == 4
    made = talk(*rows, rows[3], duplicates="conversation")
    assert made.dropped == [("a.jsonl:3", "duplicate"), ("a.jsonl:5", "duplicate")]


def test_one_prompt_is_on_one_side_of_the_split(talk: Gather) -> None:
    rows = [
        row
        for number in range(200)
        for row in (pair(f"Caf\u00e9 {number}?", "one"), pair(f"CAFE\u0301   {number}?\n", "two"))
    ]
    made = talk(*rows, heldout=0.3, duplicates="keep")
    metrics = made.measured()
    assert 60 < metrics["heldout_conversations"] < 180
    assert metrics["heldout_conversations"] + metrics["conversations"] == 400
    assert metrics["prompts_in_both_splits"] == 0

    heldout = list(read_rows(made.folder / "heldout.parquet"))
    train = list(read_rows(made.folder / "train.parquet"))
    write_table(made.folder / "train.parquet", [*train, heldout[0]], GATHERED_CONVERSATION_SCHEMA)
    (made.folder.parent / f"{made.folder.name}-evaluation").rename(made.folder.parent / "first")
    assert made.measured()["prompts_in_both_splits"] == 1


def test_all_rows_held_out_or_dropped_is_an_error(talk: Gather) -> None:
    assert "all 1 are held out; lower conversation_options.heldout" in refusal(talk, pair("q"), heldout=0.999999)
    assert "give no conversation: dropped are 1 empty answer" in refusal(talk, pair("q", ""))


def test_a_row_that_is_too_long_is_named_or_skipped(
    talk: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (readers, bad_rows):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 2**20)
    path = lines(tmp_path / "a.jsonl", pair("q"), pair("long", "x" * 2**22), pair("after"))
    assert f"{path}:2: a line of more than 1 MB" in refusal(talk, path=path)
    made = talk(path=path, on_bad_row="skip")
    assert made.metrics["bad_rows"] == 1
    assert [row["where"] for row in made.rows] == ["a.jsonl:1", "a.jsonl:3"]


def test_compressed_files_csv_and_json(talk: Gather, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(pair("q1")).encode()))
    (folder / "b.json").write_text(json.dumps([pair("q2"), pair("q3")], indent=1))
    (folder / "c.csv").write_text('question,answer\nq4,"a, b"\n')
    messages = json.dumps(pair("q5")["messages"]).replace('"', '""')
    (folder / "d.csv").write_text(f'messages\n"{messages}"\n')
    (folder / "README.md").write_text("# About these conversations")
    made = talk(path=folder)
    assert [row["where"] for row in made.rows] == ["a.jsonl.gz:1", "b.json:1", "b.json:2", "c.csv:1", "d.csv:1"]
    assert [row["messages"][0]["content"] for row in made.rows] == ["q1", "q2", "q3", "q4", "q5"]
    assert made.metrics["left_out_files"] == 1
    text = talk(path=folder / "README.md", source={"format": "plain_text"})
    assert turns(text.rows[0]) == [("assistant", "# About these conversations")]


def test_a_local_dataset_is_read_without_arrow(talk: Gather, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    calls = [{"function": {"name": "f", "arguments": arguments}} for arguments in ({"city": "Oslo"}, {"x": None})]
    rows = [
        {"messages": [{"role": "user", "content": str(number)}, {"role": "assistant", "tool_calls": [call]}]}
        for number, call in enumerate(calls)
    ]
    lines(folder / "train.jsonl", *rows)
    made = talk(source={"path": None, "dataset": str(folder)}, path=folder)
    arguments = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in made.rows]
    assert arguments == [{"city": "Oslo"}, {"x": None}]
    assert "has no split test, only train" in refusal(
        talk, source={"path": None, "dataset": str(folder), "split": "test"}, path=folder
    )


def test_running_again_gives_the_same_bytes_and_a_report(talk: Gather) -> None:
    first, second = (talk(*(row for row, _, _ in MIXED)) for _ in range(2))
    for name in ("train.parquet", "heldout.parquet"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    report = first.folder / "report"
    assert "2 alpaca" in (report / "card.md").read_text()
    assert (report / "formats.png").stat().st_size < 100_000
    samples = json.loads((report / "samples.json").read_text())
    assert all(not isinstance(value, dict | list) for row in samples for value in row.values())


def test_keys_of_messages_that_are_not_read_are_shown(talk: Gather) -> None:
    row = pair("q")
    row["messages"][1]["reasoning_content"] = "Hm."
    made = talk(row)
    card = (made.folder / "report" / "card.md").read_text()
    assert "messages with a key that is not read, reasoning_content: 1" in card


def test_sources_from_the_corpus_are_no_part_of_the_identity() -> None:
    files = {"name": "a", "path": "x"}
    both = ConversationsSection.model_validate({"sources": [files, {"name": "b", "from_corpus": True}]})
    alone = ConversationsSection.model_validate({"sources": [files]})
    assert both.identity_fields() == alone.identity_fields()
    with pytest.raises(ValueError, match="remove licence, path|exactly one"):
        ConversationSource(name="s", path="x", licence="MIT", from_corpus=True)
    for key, value in {"licence": "MIT", "weight": 2.0, "max_rows": 9}.items():
        with pytest.raises(ValueError, match=f"remove {key}; instruction_data.max_conversations"):
            ConversationSource.model_validate({"name": "s", "from_corpus": True, key: value})
