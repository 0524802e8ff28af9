"""What was counted of an asset of data, from its manifest and its reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.specs.artifacts import Manifest
from training.specs.corpus import FUNNEL
from training.specs.statistics import STATISTICS
from training.store.store import Store

_REPORTS = {"statistics": STATISTICS, "funnel": FUNNEL, "left_out": "left_out.json"}
_BAR = 40
_NUMBERS = ("number", "documents", "bytes", "tokens", "files", "dropped")
_KEPT = {"train": "for training", "heldout": "held out"}


def statistics_of(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Version, metrics, and what its reports say; a report that a version does not have is left out.

    Raises:
        InputRefused: A report is not the one that was published.
    """
    pointer = store.promotion(manifest.asset)
    is_promoted = pointer is not None and pointer.version == manifest.version
    about = {"asset": manifest.asset, "version": manifest.version, "promoted": is_promoted, "metrics": manifest.metrics}
    with TemporaryDirectory() as folder:
        reports = {
            key: json.loads(store.verified_file(manifest, f"report/{name}", Path(folder)).read_bytes())
            for key, name in _REPORTS.items()
            if f"report/{name}" in manifest.files
        }
    return {**about, **reports.pop("statistics", {}), **reports}


def print_statistics(console: Console, statistics: Mapping[str, Any]) -> None:
    """Print the tables of an asset."""
    promoted = "promoted" if statistics["promoted"] else "not promoted"
    console.print(Text.assemble((statistics["asset"], "bold"), f" {statistics['version']}, {promoted}"))
    _print_table(console, ("", "number"), [(name, _number(value)) for name, value in statistics["metrics"].items()])

    if sources := statistics.get("sources"):
        counted = ("documents", "bytes", "tokens")
        columns = [key for key in counted if any(row[key] is not None for row in sources.values())]
        rows = [(name, *(_number(row[key]) for key in columns)) for name, row in sources.items()]
        _print_table(console, ("source", *columns), rows)
    if funnel := statistics.get("funnel"):
        _print_table(console, ("step", "number", "dropped"), _funnel_rows(funnel))
    left_out = [
        (source, reason, _number(count))
        for source, reasons in statistics.get("left_out", {}).items()
        for reason, count in reasons.items()
    ]
    if left_out:
        _print_table(console, ("source", "left out", "files"), left_out)
    if lengths := statistics.get("lengths"):
        _print_lengths(console, lengths, statistics["unit"])


def _funnel_rows(funnel: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    left = funnel["pieces"]
    rows = [("read", _number(funnel["documents"]), ""), ("pieces of these", _number(left), "")]
    for reason, count in funnel["dropped"].items():
        left -= count
        rows.append((f"without: {reason}", _number(left), f"-{count:,}" if count else "0"))
    return rows + [(name, _number(funnel[key]), "") for key, name in _KEPT.items()]


def _print_lengths(console: Console, lengths: list[Mapping[str, int]], unit: str) -> None:
    most = max(row["documents"] for row in lengths)
    rows = [
        (
            f"{row['least']:,} to {row['below'] - 1:,}",
            _number(row["documents"]),
            "█" * -(-_BAR * row["documents"] // most),
        )
        for row in lengths
    ]
    _print_table(console, (unit, "documents", ""), rows)


def _print_table(console: Console, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left")
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
