"""The files of a model's origin: which are read, which are left out, and a digest of their content.

Imports nothing heavy: the control plane uses it for the identity.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from training.data.sources.source_files import PROJECT_ROOT
from training.errors import SourceError
from training.specs.base import canonical_json, digest_of
from training.specs.imports import GGUF_SUFFIX, Origin
from training.store.store import file_entry

CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
ONE_FILE = "model.safetensors"
ABOUT = re.compile(r"(README\.md|LICEN[CS]E(\.\w+)?|NOTICE(\.\w+)?)", re.IGNORECASE)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
_PATTERNS = (CONFIG, GENERATION, INDEX, "*.safetensors", "README.md", "LICENSE*", *TOKENIZER_FILES)
_CACHED = 1_000  # files whose digests the cache keeps


@dataclass(frozen=True)
class OriginFiles:
    """A folder of somebody else's, by what its files are for.

    Attributes:
        gguf: The GGUF file that takes the place of all others; None in a folder of safetensors.
        model: Configuration and weights.
        tokenizer: Vocabulary, special tokens, template.
        about: README, licence.
        left_out: Names of everything else. Nothing of it is read.
    """

    folder: Path
    gguf: Path | None
    model: tuple[Path, ...]
    tokenizer: tuple[Path, ...]
    about: tuple[Path, ...]
    left_out: tuple[str, ...]

    @property
    def read(self) -> tuple[Path, ...]:
        """All files that are read."""
        files = (self.gguf,) if self.gguf else ()
        return (*files, *self.model, *self.tokenizer, *self.about)


def origin_files(origin: Origin, base: Path = PROJECT_ROOT) -> OriginFiles:
    """The files of an origin. A repository of the hub is fetched, everything else is read where it lies.

    Raises:
        SourceError: There is no such folder or file, or the hub does not give it.
    """
    if origin.is_hub:
        return _listed(_snapshot(origin), origin.gguf)

    path = base / Path(os.path.expandvars(origin.name)).expanduser()
    if path.name.lower().endswith(GGUF_SUFFIX):
        return _listed(path.parent, path.name)
    if not path.is_dir():
        hint = " (a name on the hub needs its `revision`, the commit of 40 hex digits)" if "/" in origin.name else ""
        raise SourceError(f"{path} is no folder{hint}; give a folder, a .gguf file, or a name on the hub")
    return _listed(path, origin.gguf)


def origin_state(origin: Origin, cache: Path | None = None, base: Path = PROJECT_ROOT) -> str:
    """SHA-256 (hex) of what an origin holds: the digests of all files that an import reads.

    A copy of the folder has the same state. A repository of the hub is its name and its commit, and nothing is fetched
    for that.

    Args:
        cache: A file that keeps digests by path, size and time of change; without it every byte is read.

    Raises:
        SourceError: There is no such folder or file.
    """
    if origin.is_hub:
        return digest_of([origin.name, origin.revision, origin.gguf])
    files = origin_files(origin, base).read
    digests = _digests(files, cache)
    return digest_of([[path.name, digests[path]] for path in files])


def _listed(folder: Path, gguf: str | None) -> OriginFiles:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}; give a folder that can be read") from error

    about = tuple(path for path in paths if ABOUT.fullmatch(path.name) and path.is_file())
    if gguf is not None:
        if not (folder / gguf).is_file():
            near = [path.name for path in paths if path.name.lower().endswith(GGUF_SUFFIX)]
            others = f"; there is {', '.join(near[:5])}" if near else ""
            raise SourceError(f"there is no file {folder / gguf}{others}")
        read = {gguf, *(path.name for path in about)}
        left_out = tuple(_name(path) for path in paths if path.name not in read)
        return OriginFiles(folder, folder / gguf, (), (), about, left_out)

    # As transformers does: one file of weights takes the place of an index and its shards.
    names = {path.name for path in paths if path.is_file()}
    weights = {ONE_FILE} if ONE_FILE in names else {name for name in names if WEIGHTS.fullmatch(name)} | {INDEX}
    model = tuple(path for path in paths if path.is_file() and path.name in (CONFIG, GENERATION, *weights))
    tokenizer = tuple(path for path in paths if path.is_file() and path.name in TOKENIZER_FILES)
    read = {path.name for path in (*model, *tokenizer, *about)}
    return OriginFiles(
        folder, None, model, tokenizer, about, tuple(_name(path) for path in paths if path.name not in read)
    )


def _name(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name


def _digests(files: Iterable[Path], cache: Path | None) -> dict[Path, str]:
    """SHA-256 (hex) of each file; one that has not changed since it is in the cache is not read again."""
    kept: dict[str, list[object]] = {}
    if cache is not None:
        with suppress(OSError, ValueError):  # a cache that cannot be read is an empty one
            read = json.loads(cache.read_bytes())
            kept = read if isinstance(read, dict) else {}

    digests: dict[Path, str] = {}
    for path in files:
        status = path.stat()
        key = str(path.resolve())
        # Nobody can set a time of status change back, as `touch -r` does with the time of change.
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        entry = kept.pop(key, None)
        known = isinstance(entry, list) and len(entry) == 5 and entry[:4] == state
        digests[path] = str(entry[4]) if known and entry else file_entry(path).sha256
        kept[key] = [*state, digests[path]]  # the newest last

    if cache is not None:
        newest = dict(list(kept.items())[-_CACHED:])
        with suppress(OSError):  # a state folder that cannot be written to costs time alone
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
            temporary.write_text(canonical_json(newest), encoding="utf-8")
            temporary.replace(cache)
    return digests


_FETCH = """
import sys
from huggingface_hub import snapshot_download
name, revision, *patterns = sys.argv[1:]
print(snapshot_download(name, revision=revision, allow_patterns=patterns, token=None))
"""


def _snapshot(origin: Origin) -> Path:
    """The folder of a repository at its commit, in the hub's own cache.

    It is fetched by a process of its own: jobs run with the hub switched off, and a library reads that switch once.

    Raises:
        SourceError: The hub does not give it.
    """
    assert origin.revision is not None
    patterns = (origin.gguf, "README.md", "LICENSE*") if origin.gguf else _PATTERNS
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    fetched = subprocess.run(
        [sys.executable, "-c", _FETCH, origin.name, origin.revision, *patterns],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if fetched.returncode:
        reason = fetched.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise SourceError(f"the hub does not give {origin.name} at {origin.revision[:12]}: {reason[0][:300]}")
    return Path(fetched.stdout.strip().splitlines()[-1])
