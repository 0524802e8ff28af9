"""Documents that came as token ids, as texts that are the same ids again when they are encoded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data.sources.bad_rows import MAX_DOCUMENT_BYTES, BadRows, unclean
from training.data.sources.origins import origin_files
from training.data.sources.token_ids import Ids, IdsRow
from training.data.tokens.byte_bpe import rows_of
from training.data.tokens.encoding import encoder
from training.data.tokens.foreign_tokenizer import read_foreign
from training.specs.imports import Imported

_BATCH_IDS = 2 * 2**20  # some 8 MB of text


def write_tokenizer(imported: Imported, folder: Path) -> Path:
    """Read an imported tokenizer and write it as a job's processes read it.

    Returns:
        Its tokenizer.json.

    Raises:
        InputRefused: It cannot be imported.
        SourceError: There is no such origin.
    """
    assert imported.origin is not None
    read_foreign(origin_files(imported.origin)).save(folder)
    return folder / "tokenizer.json"


class GivenIds:
    """Decodes documents of token ids. It takes only those whose text is encoded to the same ids again.

    So the ids are those of this tokenizer, and what is done with the text is done with what they say. A start token
    before a document and an end of text around it are left out; every document gets its own when it is packed.

    Args:
        path: tokenizer.json of the tokenizer that made them.

    Attributes:
        end: Id of the token that ends a document.
        end_name: Its name.
        largest: The largest id of a text or its end.
    """

    def __init__(self, path: Path) -> None:
        self._engine = encoder(path)
        plain = self._engine.plain
        self.end = self._engine.end
        self.end_name = str(plain.id_to_token(self.end))
        start = json.loads(path.with_name("tokenizer_config.json").read_bytes()).get("bos_token")
        self._before = {self.end, self.end if start is None else plain.token_to_id(start)}
        self._special = {
            number: token.content for number, token in plain.get_added_tokens_decoder().items() if token.special
        }
        ids = set(plain.get_vocab(with_added_tokens=True).values()) - set(self._special)
        self._is_text: npt.NDArray[np.bool_] = np.zeros(rows_of(plain), np.bool_)
        self._is_text[list(ids)] = True
        self.largest = max(self.end, *ids)

    def texts(self, rows: Iterator[IdsRow], bad: BadRows) -> Iterator[tuple[str, str]]:
        """Paths and texts of documents. Those that are none are reported, in their order.

        Raises:
            SourceError: `bad` refuses one of them.
        """
        for batch in _batches(rows):
            checked = [self._checked(row) for row in batch]
            texts = [
                "" if row.problem else self._engine.plain.decode(row.ids.tolist(), skip_special_tokens=False)
                for row in checked
            ]
            for row, text, problem in zip(checked, texts, self._problems(checked, texts), strict=True):
                if problem:
                    bad.report(f"{row.where}: {problem}")
                else:
                    yield row.path, text

    def _checked(self, row: IdsRow) -> IdsRow:
        """The ids of a document alone, or what is wrong with them."""
        ids = row.ids
        if len(ids) and int(ids[0]) in self._before:
            ids = ids[1:]
        if len(ids) and int(ids[-1]) == self.end:
            ids = ids[:-1]
        problem = row.problem
        if not problem and len(ids):
            is_known = (ids >= 0) & (ids < len(self._is_text))
            is_known[is_known] = self._is_text[ids[is_known].astype(np.int64)]
            if not is_known.all():
                problem = self._unknown(ids, int(is_known.argmin()))
        return row._replace(ids=ids, problem=problem)

    def _unknown(self, ids: Ids, place: int) -> str:
        """What is wrong with an id that stands for no text."""
        number, rows = int(ids[place]), len(self._is_text)
        if number == self.end:
            return (
                f"id {place + 1:,} of {len(ids):,} is {number}, the end of text {self.end_name}, so it is more than "
                "one document; give each a row of its own"
            )
        if number in self._special:
            return f"id {place + 1:,} is {number}, the special token {self._special[number]}, which no text holds"
        why = f"{rows - 1:,} is the last one" if not 0 <= number < rows else "no token has it"
        return f"id {place + 1:,} is {number}, and of tokenizer.from {why}; name the tokenizer that made them there"

    def _problems(self, rows: Sequence[IdsRow], texts: Sequence[str]) -> Iterator[str]:
        """What is wrong with each text; empty for one that is its ids."""
        encoded = self._engine.encode(texts)
        ends = np.cumsum(encoded.lengths)
        for row, text, end, length in zip(rows, texts, ends, encoded.lengths, strict=True):
            if row.problem:
                yield row.problem
            elif len(text) > MAX_DOCUMENT_BYTES:
                yield f"one document of more than {MAX_DOCUMENT_BYTES >> 20} MB; split it"
            elif problem := unclean(text):
                yield problem
            elif np.array_equal(encoded.tokens[end - length : end], row.ids):
                yield ""
            else:  # the fast engine is not the one that decides
                yield _difference(row.ids, self._engine.encode_exactly([text]).tokens)


def _difference(given: Ids, again: Ids) -> str:
    """How the ids of a text differ from the given ones; empty if they do not."""
    if not len(given) or np.array_equal(given, again):  # some tokenizers put a space before any text, even none
        return ""
    both = min(len(given), len(again))
    place = int(np.append(given[:both] != again[:both], True).argmax())
    return (
        f"its {len(given):,} ids do not come back when their text is encoded (from id {place + 1:,}); name the "
        "tokenizer that made them as tokenizer.from"
    )


def _batches(rows: Iterable[IdsRow]) -> Iterator[list[IdsRow]]:
    batch: list[IdsRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.ids)
        if size >= _BATCH_IDS or len(batch) >= _BATCH_IDS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=2)
def given_ids(path: Path) -> GivenIds:
    """The decoder of a tokenizer.json; a process that works on many files makes it once."""
    return GivenIds(path)
