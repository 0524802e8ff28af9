from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.tokens import parts
from tests.unit.evaluation.data.conftest import Measure
from training.data.sources.provenance import part_path
from training.data.tables import CORPUS_SCHEMA, read_rows, write_table
from training.data.tokens.encoding import Encoded, Encoder
from training.data.tokens.packing import plan, whole
from training.data.tokens.shards import TokenShards, TokenWriter
from training.evaluation import heldout_texts, shards
from training.evaluation.shard_documents import difference
from training.evaluation.shards import uncovered
from training.job.context import InputArtifact
from training.specs.corpus import CorpusSection
from training.specs.metrics import METRICS
from training.specs.tokenizer import END_OF_TURN

Built = dict[str, InputArtifact]


def _copy(artifact: InputArtifact, folder: Path) -> InputArtifact:
    shutil.copytree(artifact.folder, folder)
    return dataclasses.replace(artifact, folder=folder)


def _rewrite(
    built: Built, folder: Path, documents: list[np.ndarray], ids: np.ndarray, source: np.ndarray
) -> InputArtifact:
    """The shards with other documents, consistent in themselves."""
    meta = TokenShards(built["packed_shards"].folder).meta
    with TokenWriter(folder, meta.vocabulary, 2000) as writer:
        for document in documents:
            writer.add(document)
        writer.finish(source, ids, meta.sources, meta.weights, meta.tokenizer)
    return dataclasses.replace(built["packed_shards"], folder=folder)


def _parts_of(built: Built) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    held = TokenShards(built["packed_shards"].folder)
    return [np.array(held.document(i)) for i in range(held.meta.documents)], held.ids[:], held.source[:]


def _judge(measure: Measure, built: Built, artifact: InputArtifact) -> dict[str, float]:
    return measure(artifact, **{name: built[name] for name in ("corpus", "tokenizer", "evaluation_sets")})


def test_sound_shards(measure: Measure, built: Built) -> None:
    metrics = _judge(measure, built, built["packed_shards"])
    assert set(metrics) == set(METRICS["packed_shards"])
    assert (metrics["tokens_lost"], metrics["contaminated_documents"]) == (0, 0)
    assert 0.9 < metrics["packing_efficiency"] <= 1
    assert metrics["tokens"] == TokenShards(built["packed_shards"].folder).meta.tokens


def test_a_dropped_a_changed_and_an_added_token_are_counted(tmp_path: Path, measure: Measure, built: Built) -> None:
    documents, ids, source = _parts_of(built)
    documents[2] = np.delete(documents[2], 17)
    documents[4] = np.insert(documents[4], 5, 300)
    documents[6] = np.where(np.arange(len(documents[6])) == 9, 7, documents[6])
    metrics = _judge(measure, built, _rewrite(built, tmp_path / "s", documents, ids, source))
    assert metrics["tokens_lost"] == 1 + 1 + 2


def test_a_missing_and_a_doubled_document_are_counted(tmp_path: Path, measure: Measure, built: Built) -> None:
    documents, ids, source = _parts_of(built)
    order = [0, *range(len(documents) - 1)]
    metrics = _judge(
        measure, built, _rewrite(built, tmp_path / "s", [documents[i] for i in order], ids[order], source[order])
    )
    assert metrics["tokens_lost"] == len(documents[0]) + len(documents[-1])


def test_an_excluded_document_is_found_whatever_its_id(tmp_path: Path, measure: Measure, built: Built) -> None:
    sets = parts.sets_artifact(tmp_path / "none")
    inputs = {**built, "evaluation_sets": sets}
    contaminated = parts.shards_artifact(tmp_path / "all", inputs)
    assert _judge(measure, built, contaminated)["contaminated_documents"] == 2
    renamed = _copy(contaminated, tmp_path / "renamed")
    np.save(renamed.folder / "train/ids.npy", np.load(renamed.folder / "train/ids.npy") ^ 1)
    assert _judge(measure, built, renamed)["contaminated_documents"] == 2


def test_a_swapped_tokenizer_shows_as_lost_tokens(tmp_path: Path, measure: Measure, built: Built) -> None:
    other = parts.tokenizer_artifact(tmp_path / "other", built["corpus"], vocabulary=350)
    metrics = _judge(measure, {**built, "tokenizer": other}, built["packed_shards"])
    assert metrics["tokens_lost"] > metrics["tokens"] / 2


def test_a_plan_that_loses_doubles_or_overfills_is_counted() -> None:
    lengths = np.array([10, 3, 7, 20])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sound = plan(whole(lengths), 8)
    assert uncovered([sound], offsets) == 0
    assert uncovered([plan(whole(lengths, np.array(some)), 8) for some in ([0, 2], [1, 3])], offsets) == 0
    assert uncovered([plan(whole(lengths, np.array([0, 1, 3])), 8)], offsets) == 7
    assert uncovered([sound, plan(whole(lengths, np.array([1])), 8)], offsets) == 3
    shorter = dataclasses.replace(sound, length=sound.length - (np.arange(len(sound.length)) == 0))
    assert uncovered([shorter], offsets) == 1
    assert uncovered([dataclasses.replace(sound, context=6)], offsets) >= 4
    without_room_for_the_token_before = dataclasses.replace(sound, context=7)
    assert uncovered([without_room_for_the_token_before], offsets) >= 2


@pytest.mark.parametrize(
    ("expected", "packed", "differing"),
    [
        ([1, 2, 3], [1, 2, 3], 0),
        ([1, 2, 3], [1, 3], 1),
        ([1, 3], [1, 2, 3], 1),
        ([1, 2, 3], [1, 9, 3], 2),
        ([1, 1, 1], [1, 1], 1),
        ([], [4, 5], 2),
        ([4, 5], [], 2),
    ],
)
def test_difference(expected: list[int], packed: list[int], differing: int) -> None:
    assert difference(np.array(expected), np.array(packed)) == differing


def test_a_sound_tokenizer(measure: Measure, built: Built) -> None:
    metrics = measure(built["tokenizer"], corpus=built["corpus"])
    assert set(metrics) == set(METRICS["tokenizer"])
    assert (metrics["round_trip"], metrics["special_tokens"], metrics["generation_mask"]) == (1, 1, 1)
    assert metrics["bytes_per_token"] > 1.5


def test_a_tokenizer_that_loses_bytes_is_found(tmp_path: Path, measure: Measure, built: Built) -> None:
    broken = _copy(built["tokenizer"], tmp_path / "broken")
    path = broken.folder / "tokenizer" / "tokenizer.json"
    value = json.loads(path.read_text())
    merged = {part for merge in value["model"]["merges"] for part in merge}
    texts = "".join(row["text"] for row in read_rows(built["corpus"].folder / "heldout", ["text"]))
    lost = next(letter for letter in sorted(set(texts)) if letter in value["model"]["vocab"] and letter not in merged)
    del value["model"]["vocab"][lost]
    path.write_text(json.dumps(value))
    assert measure(broken, corpus=built["corpus"])["round_trip"] < 1


def test_a_special_token_that_is_not_one_is_found(tmp_path: Path, measure: Measure, built: Built) -> None:
    broken = _copy(built["tokenizer"], tmp_path / "broken")
    path = broken.folder / "tokenizer" / "tokenizer.json"
    value = json.loads(path.read_text())
    for token in value["added_tokens"]:
        token["special"] = token["content"] != "<|system|>"
    path.write_text(json.dumps(value))
    assert measure(broken, corpus=built["corpus"])["special_tokens"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    "change",
    [
        ("- generation -", "- generation -%}{{- 'x' -}}{%- set y = 1 -"),
        (f"content ~ '{END_OF_TURN}' -}}}}{{%- endgen", "content -}}{%- endgen"),
        ("|replace('<|end|>', '< |end|>')", ""),
        ("|trim", ""),
        ("{{- '\\n' -}}{%- endfor", "{%- endfor"),
        ("- endfor -", "- end -"),
    ],
)
def test_a_template_with_a_wrong_mask_is_found(
    tmp_path: Path, measure: Measure, built: Built, change: tuple[str, str]
) -> None:
    broken = _copy(built["tokenizer"], tmp_path / "broken")
    path = broken.folder / "tokenizer" / "additional_chat_templates" / "training.jinja"
    template = path.read_text()
    assert change[0] in template
    path.write_text(template.replace(*change))
    assert measure(broken, corpus=built["corpus"])["generation_mask"] < 1


def test_large_shards_are_sampled_and_missing_documents_still_counted(
    tmp_path: Path, measure: Measure, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, ids, source = _parts_of(built)
    damaged = _rewrite(built, tmp_path / "s", documents[:-1], ids[:-1], source[:-1])
    monkeypatch.setattr(shards, "SAMPLE_BYTES", 3000)
    assert _judge(measure, built, damaged)["tokens_lost"] == len(documents[-1])
    card = (tmp_path / "evaluation-0" / "report" / "card.md").read_text()
    assert f"of {len(documents)} documents were tokenized again" in card


@pytest.fixture
def cut_corpus(tmp_path: Path, built: Built) -> Built:
    """Documents that were cut among others, on both sides of the split; some are excluded and yet in the shards."""
    books = [
        parts.row_of(parts.text_of(5000 + n)) | {"path": part_path(f"b{n // 4}.txt", n % 4 + 1)} for n in range(12)
    ]
    held = [parts.row_of(parts.text_of(6000 + n)) | {"path": part_path("h.txt", n + 1)} for n in range(3)]
    train = [*read_rows(built["corpus"].folder / "train", CORPUS_SCHEMA.names), *books]
    heldout = [*read_rows(built["corpus"].folder / "heldout", CORPUS_SCHEMA.names), *held]
    for name, rows in (("train", train), ("heldout", heldout)):
        rows.sort(key=lambda row: row["id"])
        (tmp_path / "corpus" / name).mkdir(parents=True)
        for number in range(3):
            some = rows[number * len(rows) // 3 : (number + 1) * len(rows) // 3]
            write_table(tmp_path / "corpus" / name / f"part-{number:05d}.parquet", some, CORPUS_SCHEMA)

    corpus = parts.artifact(tmp_path / "corpus", "corpus", CorpusSection())
    inputs = {**built, "corpus": corpus, "evaluation_sets": parts.sets_artifact(tmp_path / "none")}
    shards_of_all = parts.shards_artifact(tmp_path / "all", inputs)
    excluded = [row["id"] for row in (*train[:4], *books[:4])]
    return {**inputs, "packed_shards": shards_of_all, "evaluation_sets": parts.sets_artifact(tmp_path / "s", excluded)}


@pytest.mark.parametrize("asset", ["packed_shards", "tokenizer"])
def test_any_number_of_processes_measures_the_same(
    tmp_path: Path, measure: Measure, cut_corpus: Built, asset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.job.parts._WORTH_A_POOL", 0)
    monkeypatch.setattr(heldout_texts, "_PART_BYTES", 3000)
    names = ("corpus", "tokenizer", "evaluation_sets") if asset == "packed_shards" else ("corpus",)
    inputs = {name: cut_corpus[name] for name in names}
    alone = measure(cut_corpus[asset], threads=1, **inputs)
    assert measure(cut_corpus[asset], threads=2, **inputs) == alone
    assert _files(tmp_path / "evaluation-0") == _files(tmp_path / "evaluation-1")
    if asset == "packed_shards":
        # Four documents, and one whole book; its parts are in no shard.
        assert alone["contaminated_documents"] == 5
        assert alone["tokens_lost"] > 0


def _files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("report.json", "items.jsonl", "report/card.md")]


def test_texts_are_compared_by_tokenizers_whichever_engine_encodes(
    tmp_path: Path, measure: Measure, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is wrong everywhere makes wrong shards, and its own evaluation finds them."""
    exactly = Encoder.encode_exactly

    def wrong(self: Encoder, texts: list[str]) -> Encoded:
        tokens, lengths = exactly(self, texts)
        return Encoded(np.where(tokens == tokens[0], tokens[0] + 1, tokens), lengths)

    monkeypatch.setattr(Encoder, "encode", wrong)
    made = parts.shards_artifact(tmp_path / "wrong", built)
    assert _judge(measure, built, made)["tokens_lost"] > 0


def test_packing_is_measured_in_parts_as_in_one(
    measure: Measure, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_shards = _judge(measure, built, built["packed_shards"])
    monkeypatch.setattr(shards, "PLANNED_AT_ONCE", 3)
    assert _judge(measure, built, built["packed_shards"]) == whole_shards
    monkeypatch.setattr(shards, "plan", lambda spans, context: plan(whole(spans.length[:-1]), context))
    monkeypatch.setattr(shards, "size_of_plan", lambda lengths, context: plan(whole(lengths[:-1]), context))
    assert _judge(measure, built, built["packed_shards"])["tokens_lost"] > 0
