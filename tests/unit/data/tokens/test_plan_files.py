"""Packing plans on disk give the rows that plans in memory give."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from training.data.tokens.packing import PackingPlan, plan, rows, whole
from training.data.tokens.passes import Keep, PhaseRows, read_in_phases
from training.data.tokens.plan_files import MappedPlan, kept_phases
from training.data.tokens.shards import ArrayTokens, Int64, ShardDocuments, TokenShards, unsigned_dtype
from training.errors import InputRefused
from training.specs.base import canonical_json

LENGTHS = np.maximum(3, np.random.default_rng(0).lognormal(6, 1.3, 200).astype(np.int64))
SOURCES = [np.arange(0, 60), np.arange(60, 200)]
PHASES = [(64, 500), (128, 900), (64, 600)]


def make(keep: Keep) -> tuple[PhaseRows, ...]:
    return read_in_phases(SOURCES, LENGTHS, [3.0, 1.0], PHASES, 7, keep=keep)


def never(keep: Keep) -> tuple[PhaseRows, ...]:
    pytest.fail("plans that are there are not made again")


def content(phases: tuple[PhaseRows, ...]) -> list[Int64]:
    """All tokens of a training, with their places."""
    tokens = ArrayTokens([np.arange(length + 1) * 200 + number for number, length in enumerate(LENGTHS)])
    batches = [phase.batch(tokens, 0, count, -1) for phase, (_, count) in zip(phases, PHASES, strict=True)]
    return [values for batch in batches for values in batch.values()]


def test_rows_of_mapped_plans_are_those_of_plans_in_memory(tmp_path: Path) -> None:
    in_memory = make(lambda packing: packing)
    for read in (kept_phases(tmp_path / "plans", "a", make), kept_phases(tmp_path / "plans", "a", never)):
        assert all(np.array_equal(*pair) for pair in zip(content(read), content(in_memory), strict=True))
        for phase, expected, (_, count) in zip(read, in_memory, PHASES, strict=True):
            assert phase.tokens(count).tolist() == expected.tokens(count).tolist()
            assert phase.efficiency(count) == expected.efficiency(count)
            packings = [portion.packing for portions in phase.portions for portion in portions]
            assert all(isinstance(packing, MappedPlan) for packing in packings)


def test_a_piece_takes_few_bytes(tmp_path: Path) -> None:
    (phase,) = kept_phases(
        tmp_path / "plans",
        "a",
        lambda keep: read_in_phases([np.arange(200)], LENGTHS, [1.0], [(128, 10**6)], 7, keep=keep),
    )
    ((portion,),) = phase.portions
    packing = portion.packing
    assert isinstance(packing, MappedPlan)
    assert {packing.start.dtype, packing.length.dtype, packing.document.dtype} == {np.dtype("<u2")}
    assert isinstance(packing.length, np.memmap)


@pytest.mark.parametrize("name", ["plans.json", "0000/document.npy", "0001/length.npy"])
def test_damaged_files_are_made_again(tmp_path: Path, name: str) -> None:
    good = content(kept_phases(tmp_path / "plans", "a", make))
    path = tmp_path / "plans" / name
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    again = content(kept_phases(tmp_path / "plans", "a", make))
    assert all(np.array_equal(*pair) for pair in zip(again, good, strict=True))
    kept_phases(tmp_path / "plans", "a", never)


def test_a_record_that_was_edited_is_not_believed(tmp_path: Path) -> None:
    kept_phases(tmp_path / "plans", "a", make)
    path = tmp_path / "plans" / "plans.json"
    record = json.loads(path.read_bytes())
    record["phases"][0]["portions"][0][0]["key"] += 1
    path.write_text(canonical_json(record))
    made = []
    kept_phases(tmp_path / "plans", "a", lambda keep: made.append(1) or make(keep))
    assert made


def test_plans_for_something_else_are_made_anew_and_leftovers_go(tmp_path: Path) -> None:
    kept_phases(tmp_path / "plans", "a", make)
    (tmp_path / ".plans-of-a-killed-process").mkdir()
    kept_phases(tmp_path / "plans", "b", make)
    kept_phases(tmp_path / "plans", "b", never)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plans", "plans.lock"]


def test_of_processes_that_begin_together_one_makes_the_plans(tmp_path: Path) -> None:
    """Threads stand for processes: `flock` tells open files apart, and not processes."""
    made = []
    start = threading.Barrier(4)

    def ask() -> None:
        start.wait()
        kept_phases(tmp_path / "plans", "a", lambda keep: made.append(1) or make(keep))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_the_element_type_is_chosen_at_the_border_and_refused_beyond_it() -> None:
    assert unsigned_dtype(2**16 - 1, "ids") == "<u2"
    assert unsigned_dtype(2**16, "ids") == "<u4"
    assert unsigned_dtype(2**32 - 1, "ids") == "<u4"
    with pytest.raises(InputRefused, match=r"ids go up to 4,294,967,296, and their files hold 32 bits"):
        unsigned_dtype(2**32, "ids")


def _kept(folder: Path, packing: PackingPlan) -> MappedPlan:
    def one(keep: Keep) -> tuple[PhaseRows, ...]:
        mapped.append(keep(packing))
        return ()

    mapped: list[object] = []
    kept_phases(folder, "a", one)
    (kept,) = mapped
    assert isinstance(kept, MappedPlan)
    return kept


@pytest.mark.parametrize(("document", "dtype"), [(2**16 - 1, "<u2"), (2**16, "<u4"), (2**32 - 1, "<u4")])
def test_numbers_of_documents_at_the_border_come_back(tmp_path: Path, document: int, dtype: str) -> None:
    one = np.array([1], np.int64)
    packing = PackingPlan(128, np.array([0, 1]), document * one, (2**16) * 127 * one, one)
    kept = _kept(tmp_path / "plans", packing)
    assert (kept.document.dtype, kept.start.dtype) == (np.dtype(dtype), np.dtype("<u4"))
    pieces = kept.pieces(np.array([0]))
    assert (pieces.document[0], pieces.start[0]) == (document, 2**16 * 127)


def test_a_document_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    one = np.array([1], np.int64)
    packing = PackingPlan(128, np.array([0, 1]), 2**32 * one, 0 * one, one)
    with pytest.raises(InputRefused, match="rows of 128 tokens: the numbers of its documents go up to 4,294,967,296"):
        _kept(tmp_path / "plans", packing)
    assert not (tmp_path / "plans").exists()


def test_tokens_beyond_four_thousand_million_are_read(tmp_path: Path) -> None:
    """Through index, plan and loader. The file of the shard is sparse."""
    long, context = 2**32 + 10, 2**16
    (tmp_path / "train").mkdir()
    with (tmp_path / "train" / "shard-00000.bin").open("wb") as file:
        file.seek(2 * (long - 1))
        file.write(np.array([498, 7, 8, 9], "<u2").tobytes())
    np.save(tmp_path / "train" / "offsets.npy", np.array([0, long, long + 3], "<i8"))
    np.save(tmp_path / "train" / "source.npy", np.zeros(2, "<i4"))
    np.save(tmp_path / "train" / "ids.npy", np.zeros((2, 32), np.uint8))
    meta = {"dtype": "<u2", "vocabulary": 500, "tokens": long + 3, "documents": 2, "shards": [long + 3]}
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "sources": ["a"], "weights": {"a": 1}, "tokenizer": ""}))

    shards = TokenShards(tmp_path)
    assert shards.document(1).tolist() == [7, 8, 9]
    kept = _kept(tmp_path / "plans", plan(whole(shards.lengths), context))
    pieces = kept.pieces(np.arange(kept.rows))
    assert int(pieces.length.sum()) == long + 3
    assert (pieces.start[pieces.document == 0] + pieces.length[pieces.document == 0]).max() == long

    row = np.repeat(np.arange(kept.rows), pieces.counts)[pieces.document == 1]
    batch = rows(kept, ShardDocuments(shards), row, pad=499)
    places = np.flatnonzero(np.isin(batch["labels"][0], [7, 8, 9]))
    assert batch["input_ids"][0, places[0] - 1 : places[-1] + 1].tolist() == [498, 7, 8, 9]
