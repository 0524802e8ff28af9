"""Sources of token ids, from the files to the shards that a training reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.foreign import byte_level, save_tokenizer, sentencepiece_bpe
from tests.unit.data.tokens.parts import artifact, context_of, sets_artifact, text_of
from training.data.sources import stream_ranges
from training.data.tables import read_rows
from training.data.tokens.byte_bpe import load_plain
from training.data.tokens.shards import TokenShards
from training.errors import SourceError
from training.evaluation.shards import measure_shards
from training.evaluation.source_preview import preview_source
from training.job.context import InputArtifact
from training.job.events import EventWriter
from training.job.parts import Pool
from training.specs.base import Spec
from training.specs.corpus import CorpusSection
from training.specs.execution import Execution
from training.specs.imports import Imported
from training.specs.packed_shards import PackedShardsSection
from training.specs.preview import SourcePreviewRequest
from training.specs.raw_corpus import RawCorpusSection, Source
from training.specs.tokenizer import TokenizerSection
from training.stages import corpus, packed_shards, raw_corpus, tokenizer

TEXTS = [text_of(number, 60) for number in range(1, 41) if number % 7]
ORIGINS: dict[str, Any] = {
    "byte level": (byte_level, {"eos_token": "<|endoftext|>"}),
    "sentencepiece bpe": (sentencepiece_bpe, {"eos_token": "</s>", "bos_token": "<s>"}),
}


def origin(folder: Path, kind: str = "byte level") -> Path:
    make, config = ORIGINS[kind]
    return save_tokenizer(make(), folder / "origin", **config)


def ids_of(folder: Path, texts: list[str]) -> list[list[int]]:
    plain = load_plain(folder / "tokenizer.json")
    return [plain.encode(text, add_special_tokens=False).ids for text in texts]


def end_of(folder: Path) -> int:
    plain = load_plain(folder / "tokenizer.json")
    return int(next(filter(None.__ne__, map(plain.token_to_id, ("<|endoftext|>", "</s>")))) or 0)


def write_stream(path: Path, folder: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.array([number for ids in ids_of(folder, texts) for number in (*ids, end_of(folder))], np.uint16))


def section_of(folder: Path, *sources: Source, **options: Any) -> RawCorpusSection:
    return RawCorpusSection(sources=sources, tokenizer=Imported(**{"from": str(folder)}), **options)


def made(out: Path, asset: str, stage: Any, section: Spec, inputs: dict[str, InputArtifact]) -> InputArtifact:
    """What a stage makes, as the next stage is given it."""
    result = stage.run(context_of(out, asset, section, inputs))
    written = artifact(out, asset, section, result.facts)
    return replace(written, manifest=written.manifest.model_copy(update={"metrics": result.metrics}))


def documents(raw: InputArtifact) -> list[dict[str, Any]]:
    return [row for path in sorted((raw.folder / "documents").glob("*.parquet")) for row in read_rows(path)]


@pytest.mark.parametrize("kind", ORIGINS)
def test_the_shards_hold_the_ids_that_were_given(tmp_path: Path, kind: str) -> None:
    folder = origin(tmp_path, kind)
    write_stream(tmp_path / "ids" / "a.npy", folder, TEXTS[:20])
    table = pa.table({"input_ids": pa.array(ids_of(folder, TEXTS[10:]), pa.list_(pa.int32()))})  # ten of them twice
    pq.write_table(table, tmp_path / "ids" / "b.parquet")
    section = section_of(folder, Source(name="ids", path=str(tmp_path / "ids"), input_ids="input_ids"))
    raw = made(tmp_path / "raw", "raw_corpus", raw_corpus, section, {})
    assert raw.manifest.metrics["documents"] == len(TEXTS) + 10 and raw.manifest.metrics["bad_rows"] == 0

    imported = {
        "tokenizer": made(tmp_path / "words", "tokenizer", tokenizer, TokenizerSection(**{"from": str(folder)}), {})
    }
    assert imported["tokenizer"].manifest.facts["tokenizer"] == raw.manifest.facts["tokenizer"]
    cleaned = made(tmp_path / "corpus", "corpus", corpus, CorpusSection(heldout=0.2), {"raw_corpus": raw})
    inputs = imported | {"corpus": cleaned, "evaluation_sets": sets_artifact(tmp_path / "sets")}
    packing = PackedShardsSection(contexts=(64,))
    packed = made(tmp_path / "packed", "packed_shards", packed_shards, packing, inputs)

    shards = TokenShards(packed.folder)
    given = {tuple([*ids, end_of(folder)]) for ids in ids_of(folder, TEXTS)}
    kept = {tuple(shards.document(number).tolist()) for number in range(shards.meta.documents)}
    heldout = sum(len(list(read_rows(path))) for path in (cleaned.folder / "heldout").glob("*.parquet"))
    assert kept < given and heldout > 0 and len(kept) == shards.meta.documents == len(TEXTS) - heldout
    measured = measure_shards(
        packed, cleaned, imported["tokenizer"], inputs["evaluation_sets"], (64,),
        Pool(tmp_path / "measure", Execution(), EventWriter(None)),
    )  # fmt: skip
    assert measured.report.metrics["tokens_lost"] == 0


def test_a_large_stream_is_read_in_parts_with_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = origin(tmp_path)
    write_stream(tmp_path / "ids" / "a.npy", folder, TEXTS)
    write_stream(tmp_path / "ids" / "b.npy", folder, ["the one long document " * 400])
    section = section_of(folder, Source(name="ids", path=str(tmp_path / "ids"), input_ids="input_ids"))
    whole = documents(made(tmp_path / "whole", "raw_corpus", raw_corpus, section, {}))
    monkeypatch.setattr(raw_corpus, "_PART_BYTES", 2_000)
    pieces = made(tmp_path / "pieces", "raw_corpus", raw_corpus, section, {})
    assert documents(pieces) == whole and len(whole) == len(TEXTS) + 1
    assert len(list((pieces.folder / "parts" / "read_ids").iterdir())) > 4
    assert [row["path"] for row in whole[:2]] == ["a.npy#1", "a.npy#2"]


def test_a_stream_that_changes_while_it_is_counted_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = origin(tmp_path)
    write_stream(tmp_path / "ids" / "a.npy", folder, TEXTS)
    right = stream_ranges.open_stream

    def changing(file: Any) -> Any:
        ids = right(file)
        if file.lines is not None:
            write_stream(file.path, folder, TEXTS[::-1])
        return ids

    monkeypatch.setattr(raw_corpus, "_PART_BYTES", 2_000)
    monkeypatch.setattr(stream_ranges, "open_stream", changing)
    section = section_of(folder, Source(name="ids", path=str(tmp_path / "ids"), input_ids="input_ids"))
    with pytest.raises(SourceError, match="a.npy: it changed while it was read"):
        made(tmp_path / "raw", "raw_corpus", raw_corpus, section, {})


def test_documents_of_another_normal_form_are_told(tmp_path: Path) -> None:
    folder = origin(tmp_path)
    write_stream(tmp_path / "ids" / "a.npy", folder, ["a line\r\nand one", "cafe\u0301", *TEXTS[:3]])
    section = section_of(folder, Source(name="ids", path=str(tmp_path / "ids"), input_ids="input_ids"))
    raw = made(tmp_path / "raw", "raw_corpus", raw_corpus, section, {})
    assert "ids: 2 documents of token ids have other line ends" in (raw.folder / "report" / "card.md").read_text()
    assert documents(raw)[0]["text"] == "a line\r\nand one"


def test_bad_documents_are_counted_beside_a_source_of_texts(tmp_path: Path) -> None:
    folder = origin(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text")
    write_stream(tmp_path / "ids" / "a.npy", folder, TEXTS[:2])
    np.save(tmp_path / "ids" / "b.npy", np.array([9_999, end_of(folder)], np.uint16))
    sources = (
        Source(name="ids", path=str(tmp_path / "ids"), input_ids="input_ids"),
        Source(name="texts", path=str(tmp_path / "texts")),
    )
    raw = made(tmp_path / "raw", "raw_corpus", raw_corpus, section_of(folder, *sources, on_bad_row="skip"), {})
    assert [row["source"] for row in documents(raw)] == ["ids", "ids", "texts"]
    assert raw.manifest.metrics["bad_rows"] == 1
    with pytest.raises(SourceError, match="b.npy: document 1: id 1 is 9999"):
        made(tmp_path / "again", "raw_corpus", raw_corpus, section_of(folder, *sources), {})


def test_a_wrong_tokenizer_stops_the_job_although_bad_documents_are_skipped(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(size=280), tmp_path / "other", eos_token="<|endoftext|>")
    write_stream(tmp_path / "ids" / "a.npy", folder, ["a", *TEXTS[:2]])  # one letter is one id for both
    section = section_of(
        origin(tmp_path), Source(name="ids", path=str(tmp_path / "ids"), input_ids="input_ids"), on_bad_row="skip"
    )
    with pytest.raises(SourceError, match="source ids: 2 of 3 documents are not what tokenizer.from writes"):
        made(tmp_path / "raw", "raw_corpus", raw_corpus, section, {})


def test_a_preview_shows_what_the_ids_say(tmp_path: Path) -> None:
    folder = origin(tmp_path)
    write_stream(tmp_path / "ids" / "a.npy", folder, TEXTS)
    source = Source(name="ids", path=str(tmp_path / "ids"), input_ids="input_ids")
    tokenizer = Imported(**{"from": str(folder)})
    shown = preview_source(SourcePreviewRequest(text=source, tokenizer=tokenizer, count=2, characters=10_000))
    assert [row.columns[0].pieces[0].text for row in shown.rows] == TEXTS[:2]
    assert shown.rows[1].title.startswith("a.npy#2, ") and not shown.notes
