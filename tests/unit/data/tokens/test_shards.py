from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.tokens import parts
from training.data.sources.provenance import part_path
from training.data.tables import read_rows
from training.data.tokens.byte_bpe import TOKENIZER_FILE, load_plain
from training.data.tokens.packing import IGNORE, plan, rows, whole
from training.data.tokens.shards import ShardDocuments, TokenShards, TokenWriter
from training.errors import InputRefused, RecipeError
from training.evaluation.shards import measure_shards
from training.job.context import InputArtifact
from training.job.events import EventWriter
from training.job.parts import Pool
from training.specs.corpus import CorpusSection
from training.specs.execution import Execution
from training.specs.packed_shards import PackedShardsSection
from training.specs.tokenizer import END_OF_TEXT
from training.stages import packed_shards


def _write(folder: Path, documents: list[np.ndarray], vocabulary: int = 500, shard_tokens: int = 40) -> TokenShards:
    with TokenWriter(folder, vocabulary, shard_tokens) as writer:
        for document in documents:
            writer.add(document)
        ids = np.arange(32 * len(documents)).astype(np.uint8).reshape(-1, 32)
        writer.finish(np.zeros(len(documents), np.int32), ids, ("one",), {"one": 1.0}, "digest")
    return TokenShards(folder)


@pytest.mark.parametrize("vocabulary", [500, 70_000])
def test_documents_come_back_whole_from_every_shard(tmp_path: Path, vocabulary: int) -> None:
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, vocabulary, length) for length in (7, 30, 1, 90, 12, 0, 40)]
    shards = _write(tmp_path, documents, vocabulary)
    assert shards.meta.dtype == ("<u2" if vocabulary == 500 else "<u4")
    assert shards.meta.shards == (38, 90, 12, 40)
    for index, document in enumerate(documents):
        assert shards.document(index).tolist() == document.tolist()
    tokens, mask = shards.gather(np.array([6, 3, 1]), np.array([5, 10, 0]), np.array([3, 20, 30]))
    assert mask is None
    assert tokens.tolist() == [*documents[6][5:8], *documents[3][10:30], *documents[1]]


def test_rows_of_shards_hold_every_document(tmp_path: Path) -> None:
    documents = [np.arange(start, start + length) for start, length in ((0, 7), (100, 30), (200, 55))]
    shards = _write(tmp_path, documents)
    packing = plan(whole(shards.lengths), 16)
    batch = rows(packing, ShardDocuments(shards), np.arange(packing.rows), pad=499)
    learned = batch["labels"][batch["labels"] != IGNORE]
    assert sorted(learned.tolist()) == sorted(np.concatenate(documents).tolist())


def test_a_document_of_shards_begins_after_the_end_of_a_text(tmp_path: Path) -> None:
    shards = _write(tmp_path, [np.append(np.arange(start, start + n), 498) for start, n in ((0, 6), (100, 49))])
    reader = ShardDocuments(shards)
    assert reader.end == 498
    assert reader.before(np.array([0, 1, 1, 0]), np.array([0, 0, 20, 6])).tolist() == [498, 498, 119, 5]
    packing = plan(whole(shards.lengths), 16)
    batch = rows(packing, reader, np.arange(packing.rows), pad=499)
    firsts = {0: 498, 100: 498, 115: 114, 130: 129, 145: 144}
    for token, before in firsts.items():
        (row,), (column,) = np.nonzero(batch["labels"] == token)
        assert (batch["input_ids"][row, column - 1], batch["position_ids"][row, column]) == (before, 1)


@pytest.mark.parametrize("name", ["train/shard-00001.bin", "train/offsets.npy", "meta.json"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    _write(tmp_path, [np.arange(30), np.arange(30)])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputRefused, match=path.name):
        TokenShards(tmp_path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, [np.arange(30), np.arange(30)])
    (tmp_path / "train/shard-00000.bin").unlink()
    with pytest.raises(InputRefused, match=r"shard-00000\.bin is missing"):
        TokenShards(tmp_path)


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, corpus: InputArtifact, tokenizer_folder: Path
) -> dict[str, InputArtifact]:
    excluded = [
        row["id"] for row in read_rows(corpus.folder / "train", ["id", "domain"]) if row["domain"] == "general"
    ][:2]
    return {
        "corpus": corpus,
        "tokenizer": parts.artifact(tokenizer_folder, "tokenizer"),
        "evaluation_sets": parts.sets_artifact(tmp_path_factory.mktemp("sets"), excluded),
    }


def test_the_stage_writes_each_wanted_document_once_in_the_order_of_ids(
    tmp_path: Path, inputs: dict[str, InputArtifact]
) -> None:
    shards = TokenShards(parts.shards_artifact(tmp_path / "out", inputs).folder)
    excluded = {row["id"] for row in read_rows(inputs["evaluation_sets"].folder / "exclusions.parquet")}
    expected = sorted(
        (
            row
            for row in read_rows(inputs["corpus"].folder / "train")
            if row["domain"] == "general" and row["id"] not in excluded
        ),
        key=lambda row: str(row["id"]),
    )
    assert [digest.tobytes().hex() for digest in shards.ids] == [row["id"] for row in expected]
    assert [shards.sources[number] for number in shards.source] == [row["source"] for row in expected]
    assert shards.meta.weights == {"one": 1.0, "two": 2.0}
    assert len(shards.meta.shards) > 1

    plain = load_plain(inputs["tokenizer"].folder / TOKENIZER_FILE)
    end = plain.token_to_id(END_OF_TEXT)
    for index, row in enumerate(expected):
        tokens = shards.document(index).tolist()
        assert tokens.count(end) == 1
        assert tokens[-1] == end
        assert min(tokens[:-1]) > 5, "a special token's name in the text became that token"
        assert plain.decode(tokens[:-1], skip_special_tokens=False) == row["text"]


def test_a_document_in_parts_is_packed_whole(tmp_path: Path, inputs: dict[str, InputArtifact]) -> None:
    texts = [parts.text_of(2000 + number) for number in range(4)]
    train = [parts.row_of(text) | {"path": part_path("book.txt", number)} for number, text in enumerate(texts, start=1)]
    heldout = [parts.row_of(parts.text_of(3000 + number)) | {"path": part_path("h.txt", number)} for number in (1, 2)]
    parts.write_corpus(tmp_path / "corpus", train, heldout)
    inputs_of_parts = inputs | {
        "corpus": parts.artifact(tmp_path / "corpus", "corpus", CorpusSection()),
        "evaluation_sets": parts.sets_artifact(tmp_path / "sets", [train[2]["id"]]),
    }
    artifact = parts.shards_artifact(tmp_path / "out", inputs_of_parts)
    shards, plain = TokenShards(artifact.folder), load_plain(inputs_of_parts["tokenizer"].folder / TOKENIZER_FILE)
    end = plain.token_to_id(END_OF_TEXT)
    documents = [shards.document(index).tolist() for index in range(shards.meta.documents)]
    assert all(tokens.count(end) == 1 and tokens[-1] == end for tokens in documents)
    assert {plain.decode(tokens[:-1], skip_special_tokens=False) for tokens in documents} == {
        texts[0] + texts[1],
        texts[3],
    }

    judged_by = (inputs_of_parts[name] for name in ("corpus", "tokenizer", "evaluation_sets"))
    pool = Pool(tmp_path, Execution(), EventWriter(None))
    measured = measure_shards(artifact, *judged_by, (32, 64), pool).estimates
    assert measured["tokens_lost"].value == measured["contaminated_documents"].value == 0


def test_the_stage_is_deterministic(tmp_path: Path, inputs: dict[str, InputArtifact]) -> None:
    first, second = (parts.shards_artifact(tmp_path / name, inputs).folder for name in ("a", "b"))
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_nothing_left_to_train_on_is_refused(tmp_path: Path, inputs: dict[str, InputArtifact]) -> None:
    section = PackedShardsSection(exclude_domains=("general", parts.ADAPTER_DOMAIN))
    with pytest.raises(RecipeError, match="exclude_domains"):
        packed_shards.run(parts.context_of(tmp_path / "out", "packed_shards", section, inputs))


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, 60_000, 100) as writer:
        with pytest.raises(ValueError, match="70000 do not fit a vocabulary of 60000"):
            writer.add(np.array([1, 70_000], np.int64))
        with pytest.raises(ValueError, match="-1 to 5"):
            writer.add(np.array([-1, 5], np.int32))


def test_tokens_beyond_four_billion_are_read(tmp_path: Path) -> None:
    """A sparse file: what was never written takes no room."""
    first = 2**32 + 10
    with TokenWriter(tmp_path, 1000, 2**40) as writer:
        writer.add(np.array([7, 8, 9]))
        writer.finish(np.zeros(1, np.int32), np.zeros((1, 32), np.uint8), ("s",), {"s": 1.0}, "")
    with (tmp_path / "train" / "shard-00000.bin").open("r+b") as file:
        file.truncate(2 * first)
        file.seek(2 * first)
        file.write(np.array([7, 8, 9], "<u2").tobytes())
    meta = json.loads((tmp_path / "meta.json").read_text())
    changed = {"documents": 2, "tokens": first + 3, "shards": [first + 3]}
    (tmp_path / "meta.json").write_text(json.dumps(meta | changed))
    np.save(tmp_path / "train" / "offsets.npy", np.array([0, first, first + 3], "<i8"))
    np.save(tmp_path / "train" / "source.npy", np.zeros(2, "<i4"))
    np.save(tmp_path / "train" / "ids.npy", np.zeros((2, 32), np.uint8))

    shards = TokenShards(tmp_path)
    assert shards.document(1).tolist() == [7, 8, 9]
    assert shards.gather(np.array([1, 1]), np.array([0, 2]), np.array([2, 1]))[0].tolist() == [7, 8, 9]
    packing = plan(whole(shards.lengths, np.array([1])), 8)
    assert packing.tokens == 3 and packing.document.tolist() == [1]
