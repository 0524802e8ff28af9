"""The rows that people look at are the rows that a model learns from."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.unit.data.conversations import chat_tokenizers
from tests.unit.data.tokens import parts
from training import preview as preview_command
from training.data.conversations.chat_format import ChatFormat
from training.data.conversations.encoded_rows import encode_rows
from training.data.conversations.mixing import MIXED_CONVERSATION_SCHEMA, MIXED_PAIR_SCHEMA
from training.data.tables import CORPUS_SCHEMA, read_rows, write_table
from training.data.tokens.shards import ArrayTokens, ShardDocuments, TokenShards
from training.engine.batches import PackedBatches, read_documents
from training.errors import RecipeError
from training.evaluation.preview import preview
from training.evaluation.preview_page import page, write_preview
from training.job.context import InputArtifact
from training.specs.preview import Column, Preview, PreviewRequest

CONTEXT = 120


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizers.write(folder / "tokenizer", *chat_tokenizers.qwen3())
    return folder


def conversation(number: int, *turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    own = {"source": "s", "where": f"chats.jsonl:{number}", "format": "messages", "tools": ""}
    made = {"kind": "gathered", "domain": "general", "source_id": "x"}
    return {"id": f"{number:03}", "messages": json.dumps(messages), **made, **own}


def requested(folder: Path, tokenizer: Path, **options: Any) -> Preview:
    values = {"asset": "instruction_data", "data": folder, "tokenizer": tokenizer, "context": CONTEXT, **options}
    return preview(PreviewRequest.model_validate(values))


def learned(column: Column) -> list[str]:
    return [piece.text for piece in column.pieces if piece.kind == "learned"]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    turns = [("Name a red fruit.", f"Cherry {number}.", "Another?", "Pl\u00fcm.") for number in range(9)]
    rows = [conversation(number, *texts) for number, texts in enumerate(turns)]
    write_table(tmp_path / "train.parquet", rows, MIXED_CONVERSATION_SCHEMA)
    return tmp_path


def test_conversations_by_what_is_learned(chats: Path, tokenizer: Path) -> None:
    shown = requested(chats, tokenizer, first=2, count=2)
    assert shown.of == 9
    assert [row.title for row in shown.rows] == ["chats.jsonl:2", "chats.jsonl:3"]
    (column,) = shown.rows[0].columns
    assert learned(column) == ["Cherry 2.<|im_end|>", "Pl\u00fcm.<|im_end|>"]
    assert column.pieces[0].kind == "given" and column.pieces[0].text.startswith("<|im_start|>user\nName a red")


def test_one_row_is_found_by_its_place(chats: Path, tokenizer: Path) -> None:
    shown = requested(chats, tokenizer, find="chats.jsonl:7")
    assert [row.title for row in shown.rows] == ["chats.jsonl:7"]
    assert requested(chats, tokenizer, find="nowhere") == Preview(rows=(), of=0)


def test_a_place_is_not_the_beginning_of_another_one(tmp_path: Path, tokenizer: Path) -> None:
    rows = [conversation(number, "Name a red fruit.", "Cherry.") for number in range(30)]
    write_table(tmp_path / "train.parquet", rows, MIXED_CONVERSATION_SCHEMA)
    assert [row.title for row in requested(tmp_path, tokenizer, find="chats.jsonl:2").rows] == ["chats.jsonl:2"]
    assert requested(tmp_path, tokenizer, find="jsonl:2").of == 11


def test_an_adapters_documents_are_packed_with_its_conversations(chats: Path, tokenizer: Path) -> None:
    write_table(chats / "documents.parquet", [parts.row_of("The cat sat. " * 60)], CORPUS_SCHEMA)
    shown = requested(chats, tokenizer, asset="adapter_data", packed=True, count=9)
    totals = [sum(piece.tokens for piece in row.columns[0].pieces) for row in shown.rows]
    assert totals == [CONTEXT] * 9
    text = "".join(piece.text for row in shown.rows for piece in row.columns[0].pieces)
    assert "The cat sat." in text and "Cherry 8." in text
    assert shown.rows[0].columns[0].pieces[0].kind == "border"


def test_packed_conversations_are_those_of_the_training(chats: Path, tokenizer: Path) -> None:
    chat_format = ChatFormat.load(tokenizer / "tokenizer")
    encoded = encode_rows(chat_format, list(read_rows(chats / "train.parquet")), "train.parquet", CONTEXT, None, print)
    tokens = ArrayTokens(encoded.sequences, encoded.masks)
    segments = read_documents([np.arange(9)], tokens, [1.0], [(0, 5, CONTEXT)], 2 * CONTEXT, 3, alone=False)
    batches = PackedBatches(segments, tokens, 2 * CONTEXT, 2 * CONTEXT, 1, chat_format.pad)
    batch = batches.micro_batch(0, 0, 0)

    shown = requested(chats, tokenizer, packed=True, count=2, seed=3)
    for row, ids, labels in zip(shown.rows, batch["input_ids"], batch["labels"], strict=True):
        (column,) = row.columns
        padding = column.count("padding")
        text = "".join(piece.text for piece in column.pieces)
        assert text == chat_format.decode(ids[: CONTEXT - padding].tolist())
        assert column.count("learned") == int((labels != -100).sum())


def test_a_mixture_decides_which_rows_are_shown(built: dict[str, InputArtifact]) -> None:
    shards, tokenizer = built["packed_shards"].folder, built["tokenizer"].folder
    reader = TokenShards(shards)
    chosen = {name: float(number == 1) for number, name in enumerate(reader.sources)}
    asked = {"asset": "packed_shards", "context": 64, "count": 3}
    shown = requested(shards, tokenizer, mixture=chosen, **asked)
    assert shown.rows != requested(shards, tokenizer, **asked).rows
    with pytest.raises(RecipeError, match=r"base_model\.mixture: 1 of the tokens are asked of nowhere"):
        requested(shards, tokenizer, mixture={"nowhere": 1.0}, **asked)


def test_pretraining_rows_are_learned_whole(built: dict[str, InputArtifact]) -> None:
    shards, tokenizer = built["packed_shards"].folder, built["tokenizer"].folder
    shown = requested(shards, tokenizer, asset="packed_shards", context=64, count=3, seed=1)
    reader = TokenShards(shards)
    documents = [np.flatnonzero(reader.source == number) for number in range(len(reader.sources))]
    weights = [reader.meta.weights[name] for name in reader.sources]
    tokens = ShardDocuments(reader)
    segments = read_documents(documents, tokens, weights, [(0, 9, 64)], 3 * 64, 1, alone=False)
    batch = PackedBatches(segments, tokens, 3 * 64, 3 * 64, 1, -1).micro_batch(0, 0, 0)
    for row, ids, labels in zip(shown.rows, batch["input_ids"], batch["labels"], strict=True):
        assert row.columns[0].count("learned") == int((labels != -100).sum())
        borders = sum(piece.kind == "border" for piece in row.columns[0].pieces)
        assert borders == int(((labels == -100) & (ids != -1)).sum()), "the token before each document is given"


def test_pairs_stand_side_by_side(tmp_path: Path, tokenizer: Path) -> None:
    turns = {
        "prompt": [{"role": "user", "content": "Name a colour."}],
        "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "Red."}],
    }
    texts = {name: json.dumps(messages) for name, messages in turns.items()}
    row = {"id": "1", "kind": "gathered", "domain": "d", "source": "s", "where": "votes.csv:2", "format": "f", **texts}
    write_table(tmp_path / "train.parquet", [{**row, "as_messages": True}], MIXED_PAIR_SCHEMA)

    (shown,) = requested(tmp_path, tokenizer, asset="preference_data").rows
    assert shown.title == "votes.csv:2"
    assert [(column.name, learned(column)) for column in shown.columns] == [
        ("chosen", ["Blue.<|im_end|>"]),
        ("rejected", ["Red.<|im_end|>"]),
    ]


def test_the_page_and_the_picture_are_sound_whatever_the_rows_hold(tmp_path: Path, tokenizer: Path) -> None:
    hostile = '<script>alert(1)</script> & \u0007 ]]> "quoted"'
    write_table(
        tmp_path / "train.parquet",
        [conversation(1, hostile, hostile)],
        MIXED_CONVERSATION_SCHEMA,
    )
    shown = requested(tmp_path, tokenizer, context=400)
    assert "<script>" not in page("Rows", shown)

    (tmp_path / "long").mkdir()
    write_preview(tmp_path, "Rows", shown)
    long = [conversation(1, "word " * 900, "Cherry.")]
    write_table(tmp_path / "train.parquet", long, MIXED_CONVERSATION_SCHEMA)
    write_preview(tmp_path / "long", "Rows", requested(tmp_path, tokenizer, context=4000))
    caption = re.search(r"(\d+) of (\d+) tokens are learned", (tmp_path / "long" / "preview.svg").read_text())
    assert caption is not None and int(caption[1]) > 0, "the picture shows less text, and counts all of it"

    picture = ElementTree.parse(tmp_path / "preview.svg").getroot()
    text = "".join(picture.itertext())
    assert "<script>alert(1)</script> & \ufffd ]]>" in text
    assert "padding" in text


def test_a_mistake_is_one_line(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The template refuses a conversation without a text to learn."""
    write_table(tmp_path / "train.parquet", [conversation(4, "Hello?", " ")], MIXED_CONVERSATION_SCHEMA)
    request = PreviewRequest(asset="instruction_data", data=tmp_path, tokenizer=tokenizer, context=CONTEXT)
    stream = io.TextIOWrapper(io.BytesIO(request.model_dump_json().encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert preview_command.main() == 2
    assert capsys.readouterr().err.startswith("error: chats.jsonl:4: message 2: an answer without text")


def test_pretraining_rows_need_no_chat_template(built: dict[str, InputArtifact], tmp_path: Path) -> None:
    """A base model of plain text may be trained further, and has none."""
    own, shards = built["tokenizer"].folder, built["packed_shards"].folder
    without = shutil.ignore_patterns("*.jinja", "additional*")
    shutil.copytree(own / "tokenizer", tmp_path / "tokenizer", ignore=without)
    options = {"asset": "packed_shards", "context": 64, "count": 2}
    assert requested(shards, tmp_path, **options) == requested(shards, own, **options)
