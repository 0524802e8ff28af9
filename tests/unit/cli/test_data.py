"""`gatehouse data`: what is shown of assets and sources, and what is said where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import data
from pipeline.cli.app import app
from pipeline.recipes.document import dump_yaml
from tests.unit.data.conftest import Pipeline
from tests.unit.data.tokens import parts
from training.data.tokens.shards import TokenShards
from training.errors import GatehouseError
from training.evaluation.preview import preview
from training.specs.preview import PreviewRequest

TEXTS = [f"Text {number}: " + "the ships sail on the sea for a day. " * (6 + 3 * number) for number in range(30)]
CODE = """
from training.custom import document_source

print("imported")


@document_source
def own():
    print("called")
    yield "one of its own"
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = Pipeline(tmp_path_factory.mktemp("built"))
    folder = pipeline.root / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, TEXTS[3]]))
    (folder / "b.html").write_text("<footer>Privacy</footer>")
    (folder / "c.pdf").write_text("x")
    turns = [("user", "Where do the ships sail?"), ("assistant", "On the sea.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (pipeline.root / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (pipeline.root / "mine.py").write_text(CODE)
    chats = {"name": "chats", "path": str(pipeline.root / "chats.jsonl")}
    recipe = {
        "extends": "tiny",
        "name": "unit",
        "code": "mine.py",
        "sources": [{"name": "sea", "path": str(folder)}, {"name": "own", "function": "own"}],
        "conversations": [chats, {"name": "c", "from_corpus": True}],
        "adapter_data": {"domain": "general"},
        "gates": {"conversations": [{"metric": "bad_rows", "must_be": "==", "threshold": 0}]},
    }
    (pipeline.root / "unit.yaml").write_text(dump_yaml(recipe))
    pipeline.run("raw_corpus", {"sources": [{"name": "sea", "path": str(folder)}]})
    pipeline.run("corpus", {"heldout": 0.2, "near_duplicates": {"threshold": 1.0}}, ("raw_corpus",))
    pipeline.run("conversations", {"sources": [chats], "heldout": 0.0})
    return pipeline


@pytest.fixture
def ask(built: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command on the recipe and the store that were made; gives its output."""
    monkeypatch.setenv("GATEHOUSE_HOME", str(built.root / "home"))
    monkeypatch.setenv("GATEHOUSE_STORE", str(built.root / "store"))
    monkeypatch.setenv("COLUMNS", "150")

    def ask(command: str, *arguments: str) -> str:
        done: Result = CliRunner().invoke(
            app, ["data", command, *arguments, "-r", str(built.root / "unit.yaml")], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done.output

    return ask


def refusal(ask: Callable[..., str], *arguments: str) -> str:
    with pytest.raises(GatehouseError) as caught:
        ask(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_first_documents_of_texts(ask: Callable[..., str], built: Pipeline) -> None:
    shown = ask("preview", "raw_corpus", "--rows", "2", "--characters", "60")
    assert shown.startswith(f"raw_corpus {built.promoted('raw_corpus').version}\n")
    assert "sea/a.jsonl#1" in shown and "sea/a.jsonl#2" in shown and "sea/a.jsonl#3" not in shown
    assert f"{TEXTS[0][:60]} [... {len(TEXTS[0]) - 60:,} more]" in shown
    rows = json.loads(ask("preview", "corpus", "--rows", "50", "--characters", "9999", "--json"))
    texts = {row["columns"][0]["pieces"][0]["text"] for row in rows}
    assert len(texts) == len(rows) == built.promoted("corpus").metrics["documents"]
    assert texts < set(TEXTS)


def test_only_the_files_that_hold_the_rows_are_read(
    ask: Callable[..., str], built: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    verified = type(built.store).verified_file

    def noted(store: Any, manifest: Any, name: str, folder: Path) -> Path:
        read.append(name)
        return verified(store, manifest, name, folder)

    monkeypatch.setattr(type(built.store), "verified_file", noted)
    ask("preview", "raw_corpus")
    assert read == ["documents/part-00000.parquet"]
    read.clear()
    ask("stats", "raw_corpus")
    assert sorted(read) == ["report/left_out.json", "report/statistics.json"]


def test_conversations_with_what_is_learned(ask: Callable[..., str]) -> None:
    shown = ask("preview", "conversations")
    assert "user: Where do the ships sail?" in shown
    assert "assistant: [[On the sea.]]" in shown


def test_a_source_before_anything_is_built(ask: Callable[..., str]) -> None:
    shown = ask("preview", "sea", "--rows", "1")
    assert TEXTS[0][:40] in shown
    assert "left out: 1 .pdf" in shown
    (row,) = json.loads(ask("preview", "chats", "--json"))
    assert json.loads(row["columns"][0]["pieces"][0]["text"])["messages"][1]["content"] == "On the sea."


def test_a_source_of_own_code_runs_in_a_process_of_its_own(ask: Callable[..., str]) -> None:
    (row,) = json.loads(ask("preview", "own", "--json"))
    assert row["columns"][0]["pieces"][0]["text"] == "one of its own"


def test_packed_rows_with_borders(
    ask: Callable[..., str], built: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, sets = parts.corpus_artifact(tmp_path / "corpus"), parts.sets_artifact(tmp_path / "sets")
    tokenizer = parts.tokenizer_artifact(tmp_path / "tokenizer", corpus)
    made = parts.shards_artifact(
        tmp_path / "shards", {"corpus": corpus, "evaluation_sets": sets, "tokenizer": tokenizer}
    )
    for artifact in (tokenizer, made):
        draft = artifact.manifest.model_copy(update={"recipe": "unit", "metrics": {"tokens": 5.0}})
        built.promote(built.store.publish(artifact.folder, draft))

    # Encoded here instead of in a process of its own, which takes seconds to import.
    monkeypatch.setattr(data, "encoded", lambda request: preview(PreviewRequest.model_validate(request)))
    rows = json.loads(ask("preview", "packed_shards", "--rows", "2", "--json"))
    kinds = [piece["kind"] for piece in rows[0]["columns"][0]["pieces"]]
    assert len(rows) == 2 and kinds[0] == "border" and "learned" in kinds

    counted = json.loads(ask("stats", "packed_shards", "--json"))
    reader = TokenShards(built.store.folder("packed_shards", counted["version"]))
    assert {name: row["tokens"] for name, row in counted["sources"].items()} == {
        name: int(reader.lengths[reader.source == number].sum()) for number, name in enumerate(reader.sources)
    }
    assert sum(row["documents"] for row in counted["lengths"]) == reader.meta.documents
    assert counted["unit"] == "tokens"


def test_what_was_counted(ask: Callable[..., str], built: Pipeline) -> None:
    counted = json.loads(ask("stats", "raw_corpus", "--json"))
    assert counted["promoted"] and counted["version"] == built.promoted("raw_corpus").version
    size = sum(len(text.encode()) for text in [*TEXTS, TEXTS[3]])
    assert counted["sources"] == {"sea": {"documents": 31, "bytes": size, "tokens": None}}
    assert counted["left_out"] == {"sea": {".pdf": 1, "HTML with text that was not extracted": 1}}
    assert sum(row["documents"] for row in counted["lengths"]) == 31
    for row in counted["lengths"]:
        inside = [text for text in [*TEXTS, TEXTS[3]] if row["least"] <= len(text) < row["below"]]
        assert len(inside) == row["documents"]

    counted = json.loads(ask("stats", "corpus", "--json"))
    assert counted["funnel"]["dropped"]["exact duplicate"] == 1
    assert counted["sources"]["sea"]["documents"] == 30 == sum(row["documents"] for row in counted["lengths"])
    shown = ask("stats", "corpus")
    for part in ("promoted", "without: exact duplicate", "-1", "for training", "held out", "█", "sea"):
        assert part in shown


def test_what_there_is_not_is_one_message(ask: Callable[..., str], built: Pipeline) -> None:
    assert "there is no asset and no source called 'se'; did you mean sea?" in refusal(ask, "preview", "se")
    assert "there is no asset 'corpse'; did you mean corpus?" in refusal(ask, "stats", "corpse")
    assert "sft_model is a model, and not data; see `gatehouse status sft_model -r " in refusal(
        ask, "stats", "sft_model"
    )
    assert "instruction_data has not been built yet; build it with: gatehouse run -r " in refusal(
        ask, "preview", "instruction_data"
    )
    assert "corpus has no version v9" in refusal(ask, "stats", "corpus", "--version", "v9")


def test_a_version_that_is_not_promoted_has_to_be_named(
    ask: Callable[..., str], built: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = built.promoted("raw_corpus").version
    monkeypatch.setattr(type(built.store), "promotion", lambda *_: None)
    message = refusal(ask, "preview", "raw_corpus")
    assert message == f"no version of raw_corpus is promoted; look at the newest with --version {version}"
    assert "not promoted" in ask("stats", "raw_corpus", "--version", version)
    assert "sea/a.jsonl#1" in ask("preview", "raw_corpus", "--version", version)


def test_a_file_that_was_changed_is_not_shown(ask: Callable[..., str], built: Pipeline) -> None:
    path = built.store.folder("conversations", built.promoted("conversations").version) / "train.parquet"
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(before[:-1] + b"x")
    try:
        assert "train.parquet has changed since it was published" in refusal(ask, "preview", "conversations")
    finally:
        path.write_bytes(before)
