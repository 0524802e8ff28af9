"""Reads the JSON-lines files of artifacts that are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.errors import InputRefused


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, in order; blank lines hold none.

    Raises:
        InputRefused: The file is missing, or a line is not a JSON object; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(f"{path} cannot be read ({error}); materialize the asset again") from error

    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputRefused(f"{path}:{number} is not JSON ({error}); materialize the asset again") from error
        if not isinstance(row, dict):
            raise InputRefused(f"{path}:{number} is not a JSON object; materialize the asset again")
        rows.append(row)
    return rows
