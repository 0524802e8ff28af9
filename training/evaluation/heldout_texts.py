"""Held-out documents through a tokenizer and back, part by part; `training.evaluation.tokenizers` judges them.

It stands apart because a process of the pool needs nothing of transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.text.documents import Split, read_part
from training.data.text.word_codes import batches_of
from training.data.tokens.encoding import encoder
from training.job.parts import Finished, Part, Pool

MAX_BYTES = 20 * 2**20
_PART_BYTES = 4 * 2**20
_SHOWN = 80
_USED = "used.npy"


@dataclass(frozen=True)
class _Texts:
    """Rows of a file of documents, from `first` up to `end`, and a tokenizer.json."""

    tokenizer: Path
    path: Path
    first: int
    end: int


@dataclass(frozen=True)
class RoundTrip:
    """What became of some documents.

    Attributes:
        documents: Their number.
        bytes: Of UTF-8.
        tokens: Number of them.
        wrong: Id, text and what it decodes to, of documents that do not come back as they were.
        used: Ids of all tokens that occur, int32 [tokens].
    """

    documents: int
    bytes: int
    tokens: int
    wrong: Sequence[tuple[str, str, str]]
    used: npt.NDArray[np.int32]


def round_trip_of(heldout: Split, tokenizer: Path, pool: Pool) -> tuple[list[RoundTrip], int]:
    """Encode and decode the first held-out documents, up to the one that reaches `MAX_BYTES` of text.

    Args:
        heldout: The split.
        tokenizer: A tokenizer.json.
        pool: Does the work.

    Returns:
        What became of each part, and the number of all documents of the split.
    """
    parts, documents = _parts(heldout, tokenizer)
    return [_read(done) for done in pool.run("encode held-out text", _measure_rows, parts)], documents


def _read(done: Finished) -> RoundTrip:
    wrong = [tuple(row) for row in done.result["wrong"]]
    return RoundTrip(**{**done.result, "wrong": wrong}, used=np.load(done.folder / _USED))


def _parts(heldout: Split, tokenizer: Path) -> tuple[list[Part[_Texts]], int]:
    """The documents to measure, and the number of all."""
    parts: list[Part[_Texts]] = []
    documents = total = 0
    for path, _ in heldout.files():
        documents += pq.read_metadata(path).num_rows
        if total >= MAX_BYTES:
            continue
        sizes = _sizes(path)
        sizes = sizes[: np.searchsorted(np.cumsum(sizes), MAX_BYTES - total) + 1]
        total += int(sizes.sum())

        # A part ends with the document that reaches its size.
        steps = np.cumsum(sizes) // _PART_BYTES
        borders = [0, *(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), len(sizes)]
        for first, end in itertools.pairwise(borders):
            if end > first:
                texts = _Texts(tokenizer, path, first, end)
                parts.append(Part(f"{path.stem}-{first}", texts, int(sizes[first:end].sum()), str(path)))
    return parts, documents


def _sizes(path: Path) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of every document of a file, in the order of their ids, int64 [documents]."""
    sizes: npt.NDArray[np.int64] = pc.binary_length(read_part(path, ["text"])["text"]).to_numpy().astype(np.int64)
    return sizes


def _measure_rows(texts: _Texts, folder: Path) -> dict[str, Any]:
    """Measure some documents, and write which tokens they have."""
    rows = read_part(texts.path, ["text"]).slice(texts.first, texts.end - texts.first).to_pydict()
    measured = round_trip(texts.tokenizer, list(zip(rows["id"], rows["text"], strict=True)))
    np.save(folder / _USED, measured.used)
    return {name: getattr(measured, name) for name in ("documents", "bytes", "tokens", "wrong")}


def round_trip(tokenizer: Path, documents: Sequence[tuple[str, str]]) -> RoundTrip:
    """Encode documents by the fastest exact engine, and decode them by `tokenizers`.

    Args:
        tokenizer: A tokenizer.json.
        documents: Id and text of each.
    """
    engine = encoder(tokenizer)
    size = tokens = 0
    wrong: list[tuple[str, str, str]] = []
    used = np.empty(0, np.int32)
    for batch in batches_of(documents, lambda document: document[1]):
        encoded = engine.encode([text for _, text in batch])
        used = np.union1d(used, encoded.tokens)
        rows = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
        decoded = engine.plain.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)
        for (id_, text), again in zip(batch, decoded, strict=True):
            data = text.encode()
            size += len(data)
            if again.encode() != data:
                wrong.append((id_, text[:_SHOWN], again[:_SHOWN]))
        tokens += len(encoded.tokens)
    return RoundTrip(len(documents), size, tokens, wrong, used)
