"""What stages write under `report/` for people: cards, samples and pictures. The same input gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

REMOTE_FILES = "remote_files.jsonl"
_MAX_SAMPLES = 20
_LISTED_FILES = 100


def write_card(report: Path, title: str, lines: Iterable[str]) -> None:
    """Write `card.md`: a heading and lines of markdown."""
    (report / "card.md").write_text("\n".join([f"# {title}", "", *lines]) + "\n", encoding="utf-8")


def write_samples(report: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `samples.json`: at most 20 flat rows, shown as a table."""
    text = json.dumps(rows[:_MAX_SAMPLES], ensure_ascii=False, indent=1)
    (report / "samples.json").write_text(text, encoding="utf-8")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; pipes and line breaks in cells are escaped."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), line("---" for _ in columns), *map(line, rows)])


def write_remote(report: Path, files: Sequence[Mapping[str, Any]]) -> None:
    """Write what is recorded of the files that were fetched, one a line, if there are any."""
    if files:
        lines = (json.dumps(file, sort_keys=True) + "\n" for file in files)
        (report / REMOTE_FILES).write_text("".join(lines), encoding="utf-8")


def remote_lines(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """A card's lines about the files that were fetched; none if there are none."""
    if not files:
        return []
    columns = ("source", "address", "bytes", "etag", "modified", "sha256", "licence")
    rows = [[file[column] or "not given" for column in columns] for file in files[:_LISTED_FILES]]
    return [
        "",
        f"Fetched: **{len(files):,}** files, {sum(file['bytes'] for file in files) / 1e6:,.2f} MB; each of them is in "
        f"{REMOTE_FILES}.",
        "",
        markdown_table(columns, rows),
    ]


def bar_chart(path: Path, values: Mapping[str, float], title: str, unit: str) -> None:
    """Write a picture with one horizontal bar per name.

    Args:
        path: The .png file.
        values: Name to the length of its bar.
        title: Above the bars.
        unit: Of the values, below the axis.
    """
    figure = Figure(figsize=(7, 1.2 + 0.4 * max(1, len(values))), dpi=80)
    axes = figure.add_subplot()
    bars = axes.barh(list(values), list(values.values()), color="#4477aa")
    axes.bar_label(bars, fmt="{:,.4g}", padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xlabel(unit)
    figure.tight_layout()
    figure.savefig(path)


def length_and_drop_chart(path: Path, lengths: Mapping[float, int], ratio: float, dropped: Mapping[str, int]) -> None:
    """Write a picture of document lengths beside the numbers of dropped documents.

    Args:
        path: The .png file.
        lengths: Lower edge of a bin, in characters, to its number of documents.
        ratio: Upper edge of every bin divided by its lower edge.
        dropped: Documents by reason.
    """
    figure = Figure(figsize=(10, 3.6), dpi=80)
    left, right = figure.subplots(1, 2)

    left.bar(
        list(lengths),
        list(lengths.values()),
        width=[edge * (ratio - 1) for edge in lengths],
        align="edge",
        color="#4477aa",
        edgecolor="white",
    )
    left.set_xscale("log")
    left.set_xlabel("characters per document")
    left.set_ylabel("documents")
    left.set_title("kept, by length")

    bars = right.barh(list(dropped), list(dropped.values()), color="#cc6677")
    right.bar_label(bars, padding=3)
    right.margins(x=0.15)
    right.invert_yaxis()
    right.set_xlabel("documents")
    right.set_title("dropped, by reason")

    figure.tight_layout()
    figure.savefig(path)
