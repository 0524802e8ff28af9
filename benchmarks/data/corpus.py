"""The texts that are measured: Python files of the environment, with twins that are planted among them."""

from __future__ import annotations

import json
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TWINS = 400
_CHANGED_WORDS = (0.002, 0.08)  # share of a twin's words that differ; 5-gram similarity falls about ten times as fast


def write_corpus(path: Path, megabytes: float, source: Path | None, file_megabytes: float = math.inf) -> int:
    """Write texts as JSON lines with the keys `id` and `text`; up to every tenth document gets a twin.

    Args:
        path: The file, or the folder of the files where `file_megabytes` says how long each becomes.
        megabytes: Text to take; a small source is repeated, with the lines of each document shuffled.
        source: A .jsonl file with the key `text`, or a folder of text files; by default the environment's packages.

    Returns:
        Bytes of UTF-8.
    """
    draw = random.Random(0)
    texts = list(_texts(source or Path(sysconfig.get_paths()["purelib"]), megabytes * 1e6))
    twinned = set(draw.sample(range(len(texts)), min(TWINS, len(texts) // 10)))
    size = turn = number = written = 0
    file = (path if file_megabytes == math.inf else path / "000.jsonl").open("w", encoding="utf-8")
    while size < megabytes * 1e6:
        for place, text in enumerate(texts):
            if turn:
                lines = text.split("\n")
                random.Random(turn).shuffle(lines)
                text = "\n".join(lines)
            copies = [text]
            if not turn and place in twinned:
                copies.append(_edited(text, draw))
            for copy in copies:
                if size - written >= file_megabytes * 1e6:
                    file.close()
                    file, written = (path / f"{round(size / 1e6):06d}.jsonl").open("w", encoding="utf-8"), size
                file.write(json.dumps({"id": str(number), "text": copy}) + "\n")
                size, number = size + len(copy.encode()), number + 1
            if size >= megabytes * 1e6:
                break
        turn += 1
    file.close()
    return size


def _texts(source: Path, most: float) -> Iterator[str]:
    size = 0
    if source.is_file():
        with source.open(encoding="utf-8") as file:
            found: Iterator[str] = iter([json.loads(line)["text"] for line in file])
    else:
        found = _files(source)
    for text in found:
        if len(text) >= 300:
            yield text
            size += len(text.encode())
        if size >= most:
            return


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        try:
            yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _edited(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    share = draw.uniform(*_CHANGED_WORDS)
    for place in draw.sample(range(len(words)), max(1, int(len(words) * share))):
        words[place] = f"changed{draw.randrange(10**9)}"
    return " ".join(words)
