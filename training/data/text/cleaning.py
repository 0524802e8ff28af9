"""Cleaning with Daft: one form of text, cutting of long documents, reasons to drop one, exact duplicates, the split."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

import regex

from training.data.sources.provenance import file_of, is_python, part_path
from training.data.tables import fraction, text_id
from training.data.text.cutting import cut
from training.data.text.quiet_daft import F, daft
from training.specs.corpus import EXACT, FEW_LETTERS, LONG_LINE, TOO_SHORT, CorpusSection

_MOST_MOVED = 1_000  # documents; draws above the share are only needed in small domains
_MOST_OVERSHOOT = 2.0  # times the share of bytes: a domain's one long document may not swallow the split
_LINE_END = re.compile(r"\r\n?")
_BREAK = regex.compile(r"\s|(?![\x00-\x7f])\p{P}")
_DATA = re.compile(r"[!-@\[-`{-~]")
_LONGEST_WORD, _MOST_DATA = 100, 0.2  # characters on average, and a share of a line
_Type = daft.DataType
col = daft.col


def normalised(text: str) -> str:
    """The one form in which texts are kept and compared.

    Line ends become `\\n` and letters are composed (Unicode's NFC). U+FEFF is removed: it marks byte order and prints
    nothing.
    """
    text = _LINE_END.sub("\n", text).replace("\ufeff", "")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def cleaned(raw: daft.DataFrame, section: CorpusSection) -> daft.DataFrame:
    """Normalised pieces of all documents with the reason to drop each.

    Args:
        raw: Columns of `raw_corpus`.
        section: Limits and domains.

    Returns:
        Columns of `corpus`, `document` and `reason`. `id` is the SHA-256 of the piece's text, `document` that of the
        whole document it was cut from; `reason` is null for pieces that pass.
    """
    limit = section.max_characters

    def cut_up(path: str, raw_text: str) -> list[dict[str, str]]:
        text = normalised(raw_text)
        document = text_id(text)
        pieces = cut(text, limit)
        return [
            {
                "id": text_id(piece),
                "text": piece,
                "document": document,
                "path": path if len(pieces) == 1 else part_path(path, number),
            }
            for number, piece in enumerate(pieces, start=1)
        ]

    def find_domain(source: str, path: str) -> str:
        return section.domain_of(source, file_of(path))

    fields = {name: _Type.string() for name in ("id", "text", "document", "path")}
    pieces_of = daft.func(cut_up, return_dtype=_Type.list(_Type.struct(fields)))
    domain_of = daft.func(find_domain, return_dtype=_Type.string())
    piece = col("piece")
    frame = (
        raw.select("source", "licence", pieces_of(col("path"), col("text")).alias("piece"))
        .explode("piece")
        .select("source", "licence", *(piece.get(name).alias(name) for name in fields))
    )
    return frame.with_columns(
        {
            "bytes": F.length_bytes(col("text")).cast(_Type.int64()),
            "domain": domain_of(col("source"), col("path")),
            "reason": _reason(section),
        }
    )


def _reason(section: CorpusSection) -> daft.Expression:
    characters = F.length(col("text"))
    letters = F.regexp_count(col("text"), r"\p{L}")

    def is_generated(text: str, path: str) -> bool:
        return any(
            len(line) > section.max_line and (is_python(path) or not is_prose(line, section.max_line))
            for line in text.split("\n")
        )

    generated = daft.func(is_generated, return_dtype=_Type.bool())
    return (
        F.when((characters == 0) | (characters < section.min_characters), TOO_SHORT)
        .when(letters.cast(_Type.float64()) < characters.cast(_Type.float64()) * section.min_letters, FEW_LETTERS)
        .when(generated(col("text"), col("path")), LONG_LINE)
        .otherwise(daft.lit(None).cast(_Type.string()))
    )


def is_prose(line: str, longest: int) -> bool:
    """Whether a long line is a paragraph, and not base64, minified code or a table in one line.

    Prose has a break at least every hundred characters on average, and none of its words is longer than `longest`. A
    break is white space or a mark of another script, such as an ideographic full stop. At most a fifth of prose is
    ASCII digits and punctuation.
    """
    words = _BREAK.split(line)
    return (
        len(words) * _LONGEST_WORD > len(line)
        and max(map(len, words)) <= longest
        and len(_DATA.findall(line)) <= _MOST_DATA * len(line)
    )


def mark_exact_duplicates(frame: daft.DataFrame) -> daft.DataFrame:
    """Keep the first of all rows that share an id, by document, source and path; the others get the reason `EXACT`.

    Args:
        frame: Columns of `cleaned`; only rows without a reason.
    """
    keyed = frame.with_column("key", F.concat_ws("\0", col("document"), col("source"), col("path")))
    first = keyed.groupby("id").agg(F.min(col("key")).alias("first"))
    reason = F.when(col("key") != col("first"), EXACT).otherwise(daft.lit(None).cast(_Type.string()))
    return keyed.join(first, on="id").with_column("reason", reason).exclude("key", "first")


def mark_heldout(frame: daft.DataFrame, share: float) -> daft.DataFrame:
    """Add the column `heldout`.

    A document, with all its pieces, is held out if a number in [0, 1) drawn from its digest lies below `share`. So
    neither its name, nor its row, nor what else the corpus holds decides. A small domain may get less than `share` of
    its bytes in this way; there the limit moves up to the next draws. Every domain of two or more documents has at
    least one on either side. The pieces of a corpus that is a single document are drawn one by one.

    Args:
        frame: Columns `id`, `document`, `domain` and `bytes`.
        share: Of the documents.
    """
    single = frame.select("document").distinct().limit(2).count_rows() == 1
    draw = daft.func(lambda digest: fraction(digest), return_dtype=_Type.float64())
    drawn = frame.with_column("draw", draw(col("id" if single else "document"))).collect()

    documents = drawn.groupby("domain", "draw").agg(F.sum(col("bytes")).alias("bytes"))
    domains = documents.groupby("domain").agg(
        F.max(col("draw")).alias("last"),
        F.sum(col("bytes")).alias("all"),
        F.sum(F.when(col("draw") < share, col("bytes")).otherwise(0)).alias("held"),
    )
    limits = {row["domain"]: _limit(documents, row, share) for row in domains.to_pylist()}

    def is_held(domain: str, draw: float) -> bool:
        return draw < limits[domain]

    held = daft.func(is_held, return_dtype=_Type.bool())
    return drawn.with_column("heldout", held(col("domain"), col("draw"))).exclude("draw")


def _limit(documents: daft.DataFrame, domain: dict[str, Any], share: float) -> float:
    """The limit below which the draws of one domain are held out; its last document is always trained on.

    Args:
        documents: Columns `domain`, `draw` and `bytes`, one row a document.
        domain: `domain`, its `last` draw, the bytes of `all` documents and of those `held` out by `share` alone.
        share: The limit of a domain that has enough.
    """
    limit, held_bytes, needed_bytes = share, domain["held"], share * domain["all"]
    if held_bytes < needed_bytes:
        following = documents.where((col("domain") == domain["domain"]) & (col("draw") >= share))
        for row in following.sort("draw").limit(_MOST_MOVED).to_pylist():
            overshoots = held_bytes + row["bytes"] > _MOST_OVERSHOOT * needed_bytes
            if held_bytes >= needed_bytes or (held_bytes and overshoots):
                break
            limit, held_bytes = math.nextafter(row["draw"], 1), held_bytes + row["bytes"]
    return float(min(limit, domain["last"]))
