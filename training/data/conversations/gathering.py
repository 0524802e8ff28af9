"""What the stages that gather conversations and judged answers share: dropped rows, the split, and their report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.conversations.messages import Message, first_prompt
from training.data.reports import bar_chart, markdown_table, remote_lines, write_card, write_remote, write_samples
from training.data.sources.bad_rows import BadRows
from training.data.sources.source_files import shown_reasons
from training.data.tables import fraction
from training.specs.origin import Origin

DROPPED = "dropped.jsonl"
SKIPPED = "skipped.jsonl"
DUPLICATE, IDENTICAL, CONTRADICTION = "duplicate", "identical answers", "contradiction"
NO_PAIR, NO_OPPOSITE = "no answer to compare with", "no opposite answer"
TRAIN, HELDOUT = "train", "heldout"
_EXCERPT = 300
_SAMPLES = 10


class DroppedRows:
    """Counts the rows that a rule drops, and lists each of them.

    Args:
        path: A JSONL file that gets one line for each. It exists, empty, when none was dropped.

    Attributes:
        counts: Source to the number of its dropped rows by reason.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.write_text("")
        self._lines: list[str] = []
        self.counts: dict[str, Counter[str]] = {}

    def add(self, source: str, place: str, reason: str) -> None:
        """Count a row."""
        self.counts.setdefault(source, Counter())[reason] += 1
        self._lines.append(json.dumps({"source": source, "where": place, "reason": reason}) + "\n")

    def write(self) -> None:
        """Write the list."""
        self._path.write_text("".join(self._lines), encoding="utf-8")

    @property
    def total(self) -> Counter[str]:
        """Rows by reason, over all sources."""
        return sum(self.counts.values(), Counter())


def split_of(messages: Sequence[Message], heldout: float) -> str:
    """`heldout` or `train`: a pure function of the first question, so that all rows of one are on one side."""
    return HELDOUT if fraction("heldout prompt", first_prompt(messages)) < heldout else TRAIN


def excerpt(messages: Iterable[Message]) -> str:
    """Messages as a sample shows them."""
    lines = [
        f"{message['role']}: {message['content']}"
        + "".join(f" [calls {call['function']['name']}]" for call in message.get("tool_calls", ()))
        for message in messages
    ]
    text = "\n\n".join(lines)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."


class Gathered:
    """What was gathered, for the card.

    Attributes:
        kept: (source, format, split) to its number of rows.
        left_out: Source to the files that were not read, by reason.
        samples: The first few rows, flat.
        remote: What is recorded of each file that was fetched.
        notes: What else people should know, to its count.
    """

    def __init__(self, sources: Sequence[Origin]) -> None:
        self.sources = sources
        self.kept: Counter[tuple[str, str, str]] = Counter()
        self.left_out = {source.name: Counter[str]() for source in sources}
        self.samples: list[Mapping[str, Any]] = []
        self.remote: list[Mapping[str, Any]] = []
        self.notes: Counter[str] = Counter()

    def sample(self, **row: Any) -> None:
        """Keep a row as a sample while there are few."""
        if len(self.samples) < _SAMPLES:
            self.samples.append(row)

    def rows(self, split: str) -> int:
        """Rows of a split."""
        return sum(count for (_, _, of), count in self.kept.items() if of == split)

    def formats(self) -> Counter[str]:
        """Rows by format."""
        formats: Counter[str] = Counter()
        for (_, format_, _), count in self.kept.items():
            formats[format_] += count
        return formats

    def write(self, report: Path, title: str, unit: str, dropped: DroppedRows, bad: BadRows) -> None:
        """Write the card, the samples and the picture.

        Args:
            report: The folder.
            title: Of the card.
            unit: What a row is, in the plural.
            dropped: Rows that rules dropped.
            bad: Rows and files that could not be read.
        """
        write_samples(report, self.samples)
        formats = self.formats()
        bar_chart(
            report / "formats.png",
            {name: float(count) for name, count in sorted(formats.items())},
            f"{title} by format",
            unit,
        )

        rows = [
            [
                source.name,
                source.licence or "not given",
                *(sum(self.kept[source.name, name, split] for name in formats) for split in (TRAIN, HELDOUT)),
                shown_reasons(Counter({name: self._of(source.name, name) for name in formats})) or "none",
                shown_reasons(dropped.counts.get(source.name, Counter())) or "nothing",
                shown_reasons(self.left_out[source.name]) or "nothing",
            ]
            for source in self.sources
        ]
        columns = ["source", "licence", "training", "held out", "formats", "dropped", "files left out"]
        lines = [
            f"{self.rows(TRAIN):,} {unit} for training and {self.rows(HELDOUT):,} held out, by digest of the first "
            "question.",
            "",
            markdown_table(columns, rows),
            "",
            *(f"- {note}: {count:,}" for note, count in sorted(self.notes.items())),
            "",
            f"Rows and files that could not be read and were skipped: **{bad.count}**",
            "",
            *(f"- {message}" for message in bad.listed),
            *remote_lines(self.remote),
        ]
        write_card(report, title, lines)
        write_remote(report, self.remote)

    def _of(self, source: str, format_: str) -> int:
        return sum(self.kept[source, format_, split] for split in (TRAIN, HELDOUT))
