"""Sources of token ids: what they say comes in as text, and every id that would not come back is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.foreign import GPT4O_SPLIT, byte_level, save_tokenizer, sentencepiece_bpe, unigram
from training.data.sources import token_ids
from training.data.sources.bad_rows import BadRows
from training.data.sources.reading import Document, read_files, read_source
from training.data.sources.source_files import LineRange, list_source
from training.data.tokens import given_ids
from training.data.tokens.byte_bpe import load_plain
from training.data.tokens.given_ids import GivenIds, write_tokenizer
from training.errors import SourceError
from training.specs.imports import Imported
from training.specs.raw_corpus import Source

TEXTS = [
    "The path of the file.",
    "def f(x):\n    return x ** 2\n",
    "na\u00efve \u65e5\u672c\u8a9e, <|im_end|> is text",
    "the",
]
KINDS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "byte level": (byte_level, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}),
    "gpt-4o": (lambda: byte_level(split=GPT4O_SPLIT), {"eos_token": "<|endoftext|>"}),
    "sentencepiece bpe": (sentencepiece_bpe, {"eos_token": "</s>", "bos_token": "<s>"}),
    "unigram": (unigram, {"eos_token": "</s>"}),
}


def origin(folder: Path, kind: str = "byte level") -> Path:
    """The folder of a tokenizer."""
    tokenizer, config = KINDS[kind]
    return save_tokenizer(tokenizer(), folder, **config)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer.json that a job's processes read."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return write_tokenizer(Imported(**{"from": str(origin(folder / "origin"))}), folder / "written")


def encoded(path: Path, *texts: str) -> list[list[int]]:
    plain = load_plain(path)
    return [plain.encode(text, add_special_tokens=False).ids for text in texts]


def stream(path: Path, *texts: str) -> list[int]:
    """Ids with an end of text after each text."""
    end = GivenIds(path).end
    return [number for ids in encoded(path, *texts) for number in (*ids, end)]


def read(base: Path, path: Path, bad: BadRows | None = None, **fields: Any) -> list[Document]:
    source = Source(name="s", path=".", **{"input_ids": "input_ids", **fields})
    bad = bad or BadRows("fail", base.parent / "skipped.jsonl")
    return list(read_source(source, bad, base.parent, base, Counter(), decoder=GivenIds(path)))


def refusal(base: Path, path: Path, **fields: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(base, path, **fields)
    return str(caught.value)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A source's folder."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_kind_of_tokenizer_come_back(tmp_path: Path, base: Path, kind: str) -> None:
    written = write_tokenizer(Imported(**{"from": str(origin(tmp_path / "origin", kind))}), tmp_path / "written")
    texts = TEXTS if kind != "unigram" else ["The path of the file.", "the file"]
    np.save(base / "a.npy", np.array(stream(written, *texts), np.int32))
    assert [(document.path, document.text) for document in read(base, written)] == [
        (f"a.npy#{number}", text) for number, text in enumerate(texts, start=1)
    ]


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<u4", "<i4", "<i8", "<u8"])
def test_a_stream_is_cut_at_its_ends(base: Path, path: Path, dtype: str) -> None:
    end = GivenIds(path).end
    np.save(base / "after.npy", np.array(stream(path, *TEXTS), dtype))
    np.save(base / "before.npy", np.array([end, *stream(path, *TEXTS)[:-1]], dtype))
    np.save(base / "between.npy", np.array(stream(path, *TEXTS)[:-1], dtype))
    assert [document.text for document in read(base, path)] == TEXTS * 3


def test_documents_keep_their_number_where_two_ends_follow_each_other(base: Path, path: Path) -> None:
    end = GivenIds(path).end
    np.save(base / "a.npy", np.array([end, *stream(path, "one"), end, *stream(path, "two")], np.uint16))
    assert [(document.path, document.text) for document in read(base, path)] == [("a.npy#2", "one"), ("a.npy#4", "two")]


@pytest.mark.parametrize("end_of_text", ["", "after", "around"])
def test_each_row_is_a_document(base: Path, path: Path, end_of_text: str) -> None:
    end = [GivenIds(path).end]
    before, after = (end if end_of_text == "around" else []), (end if end_of_text else [])
    rows = [[*before, *ids, *after] for ids in encoded(path, *TEXTS)]
    for name, kind in (("a", pa.int32()), ("b", pa.uint16()), ("c", pa.int64())):
        for number, of in enumerate((pa.list_, pa.large_list, pa.list_view)):
            table = pa.table({"input_ids": pa.array(rows, of(kind)), "other": ["x"] * len(rows)})
            if of is not pa.list_view:
                pq.write_table(table, base / f"{name}{number}.parquet")
            with (
                pa.OSFile(str(base / f"{name}{number}.arrow"), "wb") as file,
                pa.ipc.new_stream(file, table.schema) as writer,
            ):
                writer.write_table(table)
    documents = read(base, path)
    assert [document.text for document in documents] == TEXTS * 15
    assert documents[1].path == "a0.arrow#2"


def test_a_column_may_have_another_name_and_lie_in_an_object(base: Path, path: Path) -> None:
    rows = [{"ids": ids} for ids in encoded(path, *TEXTS)]
    pq.write_table(pa.table({"data": rows}), base / "a.parquet")
    feather.write_feather(pa.table({"data": rows}), base / "b.feather", compression="uncompressed")
    assert [document.text for document in read(base, path, input_ids="data.ids")] == TEXTS * 2
    assert "has no column 'input_ids', only data.ids; set input_ids of the source s to the one" in refusal(base, path)


def test_other_files_are_left_out(base: Path, path: Path) -> None:
    np.save(base / "a.npy", np.array(stream(path, "one"), np.uint16))
    (base / "b.jsonl").write_text("{}\n")
    (base / "c.npy.gz").write_bytes(b"x")
    left_out = Counter[str]()
    source, bad = Source(name="s", path=".", input_ids="input_ids"), BadRows("fail", base.parent / "skipped.jsonl")
    assert len(list(read_source(source, bad, base, base, left_out, decoder=GivenIds(path)))) == 1
    assert left_out == {".jsonl": 1, ".npy.gz": 1}
    (base / "a.npy").unlink()
    assert "What can be read is .npy, .parquet, .arrow, .feather (token ids" in refusal(base, path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8), np.uint16), "it holds an array of the shape (4, 8), and a stream has one dimension"),
        (np.zeros(4, np.float32), "it holds float32, and ids are whole numbers"),
        (np.ones(4, np.bool_), "it holds bool, and ids are whole numbers"),
        (np.array([{}], object), "Python objects"),
        (
            np.full(4, 70, np.uint16),
            "none of its 4 ids (uint16) is 0, the end of text <|endoftext|>; put one after each",
        ),
        (np.array([70, 70, 0, 301, 0], np.int32), "document 2: id 1 is 301, and of tokenizer.from 297 is the last one"),
        (np.array([70, -1, 0], np.int32), "document 1: id 2 is -1, and of tokenizer.from 297 is the last one; name"),
        (np.array([70, 0, 70, 2, 70, 0], np.int32), "document 2: id 2 is 2, the special token <|im_end|>, which no"),
    ],
)
def test_what_is_no_stream_is_named(base: Path, path: Path, array: Any, message: str) -> None:
    assert load_plain(path).get_vocab_size() == 298
    np.save(base / "a.npy", array)
    refused = refusal(base, path)
    assert str(base / "a.npy") in refused and message in refused
    assert len(refused) < 400


@pytest.mark.parametrize("damage", ["cut", "longer", "no header"])
def test_a_damaged_stream_is_named(base: Path, path: Path, damage: str) -> None:
    np.save(base / "a.npy", np.array(stream(path, *TEXTS), np.uint16))
    data = (base / "a.npy").read_bytes()
    (base / "a.npy").write_bytes({"cut": data[:-2], "longer": data + b"xy", "no header": data[40:]}[damage])
    assert "a.npy: is no stream of token ids (" in refusal(base, path)


def test_an_empty_stream_is_counted(base: Path, path: Path) -> None:
    np.save(base / "a.npy", np.empty(0, np.uint16))
    left_out = Counter[str]()
    source, bad = Source(name="s", path=".", input_ids="input_ids"), BadRows("fail", base.parent / "skipped.jsonl")
    assert not list(read_source(source, bad, base, base, left_out, decoder=GivenIds(path)))
    assert left_out == {"without a row of text": 1}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[70], None]), "row 2: 'input_ids' is null, not a list of token ids"),
        (pa.array([[70, None]]), "row 1: 'input_ids' holds a null among its token ids"),
        (pa.array(["text"]), "the column 'input_ids' holds string, and not lists of whole numbers; set input_ids of"),
        (pa.array([[1.5]]), "holds list<element: double>, and not lists of whole numbers"),
        (pa.array([[[70]]]), "and not lists of whole numbers"),
        (pa.array([[70, 0, 70]]), "row 1: id 2 of 3 is 0, the end of text <|endoftext|>, so it is more than one doc"),
    ],
)
def test_what_is_no_row_of_ids_is_named(base: Path, path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"input_ids": column}), base / "a.parquet")
    assert message in refusal(base, path)


def test_ids_of_another_tokenizer_do_not_come_back(tmp_path: Path, base: Path, path: Path) -> None:
    other = byte_level(size=280)  # its merges are the first ones of the other, so all its ids are known there
    np.save(base / "a.npy", np.array([*other.encode("The path of the file").ids, 0], np.uint16))
    message = refusal(base, path)
    assert "a.npy: document 1: its 8 ids do not come back when their text is encoded (from id " in message
    assert "name the tokenizer that made them as tokenizer.from, or set raw_corpus.on_bad_row: skip" in message


def test_a_document_that_begins_inside_of_a_letter_does_not_come_back(base: Path, path: Path) -> None:
    (ids,) = encoded(path, "\u65e5")
    np.save(base / "a.npy", np.array([*ids[1:], 0], np.uint16))
    assert "do not come back" in refusal(base, path)


def test_what_is_bad_is_counted_and_the_rest_read(base: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_ids, "_BATCH_IDS", 8)  # documents before and behind lie in other batches
    np.save(base / "a.npy", np.array([*stream(path, *TEXTS), 301, 0, *stream(path, "end")], np.uint16))
    bad = BadRows("skip", base.parent / "skipped.jsonl")
    assert [document.text for document in read(base, path, bad)] == [*TEXTS, "end"]
    assert bad.count == 1 and "document 5: id 1 is 301" in bad.listed[0]


def test_nothing_behind_a_limit_is_judged(base: Path, path: Path) -> None:
    np.save(base / "a.npy", np.array([*stream(path, *TEXTS), 301, 0], np.uint16))
    assert len(read(base, path, max_documents=len(TEXTS))) == len(TEXTS)
    assert "id 1 is 301" in refusal(base, path, max_documents=len(TEXTS) + 1)


def test_documents_that_are_too_long_are_named(base: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_ids, "MAX_DOCUMENT_BYTES", 40)
    monkeypatch.setattr(given_ids, "MAX_DOCUMENT_BYTES", 40)
    np.save(base / "a.npy", np.array([*[70] * 41, 0], np.uint16))
    assert "document 1: one document of 41 ids; split it" in refusal(base, path)
    np.save(base / "a.npy", np.array(stream(path, "the file " * 6), np.uint16))
    assert "document 1: one document of more than 0 MB; split it" in refusal(base, path)


def test_text_that_no_file_may_hold_is_named(base: Path, path: Path) -> None:
    np.save(base / "a.npy", np.array(stream(path, "a\0b"), np.uint16))
    assert "document 1: holds NUL characters" in refusal(base, path)


def test_ids_that_were_saved_in_too_few_bits_are_refused(base: Path, path: Path) -> None:
    ids = np.array(stream(path, *TEXTS)).astype(np.uint8)  # 264 becomes 8, which stands for a text of its own
    assert not np.array_equal(ids, stream(path, *TEXTS))
    expected = "holds uint8, and the ids of tokenizer.from go up to 297, so some became others when they were saved"
    np.save(base / "a.npy", ids)
    assert f"a.npy: {expected}; write them with more bits" in refusal(base, path)
    (base / "a.npy").unlink()
    pq.write_table(pa.table({"input_ids": pa.array([ids[:4].tolist()], pa.list_(pa.uint8()))}), base / "a.parquet")
    assert f"a.parquet: the column 'input_ids' {expected}" in refusal(base, path)


def test_a_place_beyond_32_bits_is_found(base: Path, path: Path) -> None:
    (ids,), end = encoded(path, "the file"), GivenIds(path).end
    count = 2**32 + 20
    with (base / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (count,)})
        header = file.tell()
        file.truncate(header + 2 * count)  # a sparse file: all but its end takes no disk
        file.seek(header + 2 * 2**32)
        file.write(np.array([*ids, end], np.uint16).tobytes())
    (listed,) = list_source(Source(name="s", path=str(base), input_ids="input_ids")).files
    piece = replace(listed, lines=LineRange(header + 2 * 2**32, header + 2 * (2**32 + len(ids) + 1), 2**32))
    source, bad = Source(name="s", path=".", input_ids="input_ids"), BadRows("fail", base.parent / "skipped.jsonl")
    documents = list(read_files(source, [piece], bad, base, Counter(), decoder=GivenIds(path)))
    assert [(document.path, document.text) for document in documents] == [(f"a.npy#{2**32 + 1}", "the file")]
