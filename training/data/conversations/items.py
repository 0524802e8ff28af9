"""Items with a question and a right answer, made from documents, and how they are written down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.data.conversations.continuations import continuation_items
from training.data.conversations.docstrings import docstring_items
from training.data.sources.provenance import is_python, module_of
from training.data.tables import read_rows, text_id

DOCSTRING, CONTINUATION, REFUSAL, BENIGN = "docstring", "continuation", "refusal", "benign"
MAX_ANSWER_CHARACTERS = 400
ID_LENGTH = 32
_READ_WHOLE = 64 * 2**20  # bytes of text
_SPARE = 4


class Item(NamedTuple):
    """A question and its right answer.

    Attributes:
        kind: `docstring`, `continuation`, `refusal` or `benign`.
        prompt: The whole question.
        answer: The whole answer.
        evidence: What a document must hold to give the answer away: the words that the overlap test looks for.
        domain: The document's domain.
        source_id: The document's id; `safety` for written prompts.
    """

    kind: str
    prompt: str
    answer: str
    evidence: str
    domain: str
    source_id: str

    @property
    def id(self) -> str:
        """Digest of the question and the answer alone, so that one item's id never depends on another item."""
        return text_id(self.prompt, self.answer)[:ID_LENGTH]

    def row(self, repeat: int = 0) -> dict[str, str]:
        """A row of instruction_data's train.parquet; `repeat` tells copies of one conversation apart."""
        return conversation_row([self], repeat=repeat)


def conversation_row(items: Sequence[Item], system: str = "", repeat: int = 0) -> dict[str, str]:
    """A conversation of several questions and answers as a row of instruction_data's train.parquet.

    Args:
        items: In the order in which they are asked; the row's kind, domain and source are the last one's.
        system: Content of a system turn before them.
        repeat: Tells copies of one conversation apart.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for item in items:
        messages += [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
    contents = [message["content"] for message in messages]
    last = items[-1]
    return {
        "id": text_id(*contents, *([str(repeat)] if repeat else []))[:ID_LENGTH],
        "messages": json.dumps(messages, ensure_ascii=False),
        "kind": last.kind,
        "domain": last.domain,
        "source_id": last.source_id,
    }


def item_of(row: Mapping[str, str]) -> Item:
    """The last question and answer of a row of instruction_data, without the turns before them."""
    question, answer = json.loads(row["messages"])[-2:]
    return Item(row["kind"], question["content"], answer["content"], "", row["domain"], row["source_id"])


def sample_of(row: Mapping[str, str]) -> dict[str, str]:
    """A row as reports show it: its last question with the turns before it, and the answer."""
    *before, answer = json.loads(row["messages"])
    prompt = "\n\n".join([*(f"{turn['role']}: {turn['content']}" for turn in before[:-1]), before[-1]["content"]])
    return {"kind": row["kind"], "domain": row["domain"], "prompt": prompt, "answer": answer["content"]}


def items_of(document: dict[str, Any], max_characters: int = MAX_ANSWER_CHARACTERS) -> list[Item]:
    """Items of one row of the corpus: docstrings of a Python module, continuations of other text.

    Args:
        document: A row with `id`, `path`, `domain` and `text`.
        max_characters: Of an answer.
    """
    domain, source_id = document["domain"], document["id"]
    if is_python(document["path"]):
        return [
            Item(DOCSTRING, item.prompt, item.answer, item.answer, domain, source_id)
            for item in docstring_items(module_of(document["path"]), document["text"], max_characters)
        ]
    return [
        Item(CONTINUATION, item.prompt, item.answer, f"{item.passage} {item.answer}", domain, source_id)
        for item in continuation_items(document["text"], max_characters)
    ]


class TrainingItems(NamedTuple):
    """Items of the training documents.

    Attributes:
        items: One for each prompt, sorted by id.
        is_all: Whether all training documents were read.
    """

    items: list[Item]
    is_all: bool


def training_items(
    corpus: Path, exclusions: Path, needed: int, max_characters: int = MAX_ANSWER_CHARACTERS, domain: str | None = None
) -> TrainingItems:
    """Items of the first training documents in the order of their digests, as many documents as give enough.

    Enough are several times the items that are needed, of which the caller takes the first by digest; a small corpus
    is read whole. Documents that hold an item of the evaluation sets are left out. So are modules that share their
    dotted name with a held-out one, because their questions would be the held-out questions.

    Args:
        corpus: Folder of the corpus artifact.
        exclusions: The evaluation sets' exclusions.parquet.
        needed: Number of items that are taken at most.
        max_characters: Of an answer.
        domain: Only documents of this domain; None for all.
    """
    excluded = excluded_ids(exclusions)
    heldout = {module_of(row["path"]) for row in read_rows(corpus / "heldout", ["path"]) if is_python(row["path"])}

    by_prompt: dict[str, Item] = {}
    read_bytes = 0
    for row in read_rows(corpus / "train", ["id", "text", "path", "domain", "bytes"]):
        if read_bytes >= _READ_WHOLE and len(by_prompt) >= _SPARE * needed:
            return TrainingItems(_by_id(by_prompt), is_all=False)
        if row["id"] in excluded or domain not in (None, row["domain"]):
            continue
        if is_python(row["path"]) and module_of(row["path"]) in heldout:
            continue
        read_bytes += row["bytes"]
        for item in items_of(row, max_characters):
            by_prompt.setdefault(item.prompt, item)
    return TrainingItems(_by_id(by_prompt), is_all=True)


def excluded_ids(exclusions: Path) -> set[str]:
    """Ids of the training documents that hold evaluation items."""
    return {row["id"] for row in read_rows(exclusions, ["id"])}


def unique_by_prompt(items: Iterable[Item]) -> list[Item]:
    """One item for each prompt, sorted by id."""
    by_prompt: dict[str, Item] = {}
    for item in items:
        by_prompt.setdefault(item.prompt, item)
    return _by_id(by_prompt)


def _by_id(by_prompt: Mapping[str, Item]) -> list[Item]:
    return sorted(by_prompt.values(), key=lambda item: item.id)
