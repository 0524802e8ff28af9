"""Cleaning with Daft: line ends, cutting of long documents, reasons to drop one, and exact duplicates."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from training.data.cutting import cut
from training.data.provenance import file_of, group_of, part_path
from training.data.quiet_daft import F, daft
from training.data.tables import fraction
from training.specs.corpus import CorpusSection

TOO_SHORT, FEW_LETTERS, LONG_LINE = "too short", "few letters", "long line"
EXACT, NEAR = "exact duplicate", "near-duplicate"
REASONS = (TOO_SHORT, FEW_LETTERS, LONG_LINE, EXACT, NEAR)
_MOST_MOVED = 1_000  # draws above the share are only needed in small domains
_MOST_OVERSHOOT = 2.0
_Type = daft.DataType
col = daft.col


def cleaned(raw: daft.DataFrame, section: CorpusSection) -> daft.DataFrame:
    """Normalised pieces of all documents with the reason to drop each.

    Args:
        raw: Columns of `raw_corpus`.
        section: Limits and domains.

    Returns:
        Columns of `corpus` and `reason`, which is null for pieces that pass. `id` is the SHA-256 of the new text.
    """
    limit = section.max_characters

    def cut_up(text: str, path: str) -> list[dict[str, str]]:
        texts = cut(text, limit)
        return [{"id": hashlib.sha256(piece.encode()).hexdigest(), "text": piece,
                 "path": path if len(texts) == 1 else part_path(path, number)}
                for number, piece in enumerate(texts, start=1)]

    def find_domain(source: str, path: str) -> str:
        return section.domain_of(source, file_of(path))

    string = _Type.string()
    pieces = daft.func(cut_up, return_dtype=_Type.list(_Type.struct({"id": string, "text": string, "path": string})))
    domain = daft.func(find_domain, return_dtype=string)
    text = F.regexp_replace(col("text"), r"\r\n?", "\n")
    piece = col("piece")
    frame = (raw.select("source", "licence", pieces(text, col("path")).alias("piece")).explode("piece")
             .select(piece.get("id").alias("id"), piece.get("text").alias("text"), "source",
                     piece.get("path").alias("path"), "licence"))
    return frame.with_columns({"bytes": F.length_bytes(col("text")).cast(_Type.int64()),
                               "domain": domain(col("source"), col("path")), "reason": _reason(section)})


def _reason(section: CorpusSection) -> daft.Expression:
    characters = F.length(col("text"))
    letters = F.regexp_count(col("text"), r"\p{L}")
    longest = F.list_max(F.list_map(F.split(col("text"), "\n"), F.length(daft.element())))
    return (F.when((characters == 0) | (characters < section.min_characters), TOO_SHORT)
            .when(letters.cast(_Type.float64()) < characters.cast(_Type.float64()) * section.min_letters, FEW_LETTERS)
            .when(longest > section.max_line, LONG_LINE).otherwise(daft.lit(None).cast(_Type.string())))


def mark_exact_duplicates(frame: daft.DataFrame) -> daft.DataFrame:
    """Of the rows with one id, keep the first by source and path; the others get the reason `exact duplicate`."""
    keyed = frame.with_column("key", F.concat(F.concat(col("source"), daft.lit("\0")), col("path")))
    first = keyed.groupby("id").agg(F.min(col("key")).alias("first"))
    reason = F.when(col("key") != col("first"), EXACT).otherwise(daft.lit(None).cast(_Type.string()))
    return keyed.join(first, on="id").with_column("reason", reason).exclude("key", "first")


def mark_heldout(frame: daft.DataFrame, share: float) -> daft.DataFrame:
    """Add the column `heldout`.

    A whole document, with all its pieces, is held out if a number drawn from the digest of its source and path lies
    below `share`. Where that leaves a domain short of `share` of its bytes, as it can in a small one, the limit moves
    up to the next draws; in every domain with two documents or more at least one is held out and at least one is not.
    A corpus that is one single document has its pieces drawn one by one.
    """
    whole = daft.func(group_of, return_dtype=_Type.string())
    single = frame.select(whole(col("path")), col("source")).distinct().limit(2).count_rows() == 1
    draw = daft.func(_draw_piece if single else _draw, return_dtype=_Type.float64())
    drawn = frame.with_column("draw", draw(col("source"), col("path"))).collect()
    documents = drawn.groupby("domain", "draw").agg(F.sum(col("bytes")).alias("bytes"))
    limits = {row["domain"]: _limit(documents, row, share)
              for row in documents.groupby("domain").agg(
                  F.max(col("draw")).alias("last"), F.sum(col("bytes")).alias("all"),
                  F.sum(F.when(col("draw") < share, col("bytes")).otherwise(0)).alias("held")).to_pylist()}

    def is_held(domain: str, draw: float) -> bool:
        return draw < limits[domain]

    held = daft.func(is_held, return_dtype=_Type.bool())
    return drawn.with_column("heldout", held(col("domain"), col("draw"))).exclude("draw")


def _draw(source: str, path: str) -> float:
    return fraction(source, group_of(path))


def _draw_piece(source: str, path: str) -> float:
    return fraction(source, path)


def _limit(documents: daft.DataFrame, domain: dict[str, Any], share: float) -> float:
    """The limit below which draws of one domain are held out; its last document is always trained on."""
    limit, held, wanted = share, domain["held"], share * domain["all"]
    if held < wanted:
        following = documents.where((col("domain") == domain["domain"]) & (col("draw") >= share))
        for row in following.sort("draw").limit(_MOST_MOVED).to_pylist():
            if held >= wanted or (held and held + row["bytes"] > _MOST_OVERSHOOT * wanted):
                break
            limit, held = math.nextafter(row["draw"], 1), held + row["bytes"]
    return float(min(limit, domain["last"]))
