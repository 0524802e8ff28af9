"""GGUF files: what their header says, and whether they are whole."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.errors import InputRefused
from training.job.bounded_memory import bounded_memory

_MAGIC = b"GGUF"
_MEMORY = 2 * 2**30


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        kind: Type that its values are stored in, such as Q4_1.
        values: Their number.
    """

    name: str
    kind: str
    values: int


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the weights."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """Type of the stored values to number of tensors, the most frequent first."""
        return dict(Counter(tensor.kind for tensor in self.tensors).most_common())


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The scalars and texts of the header; of a list of texts only its length."""
    return read_gguf(path).metadata


def read_gguf(path: Path) -> GgufHeader:
    """Read the header, and see that every tensor lies inside the file.

    Raises:
        InputRefused: It is no GGUF file, is cut short or damaged, or the package that reads it is missing.
    """
    if find_spec("gguf") is None:
        raise InputRefused(f"{path}: GGUF files are read by a package that is not installed: pip install gguf==0.19.0")
    from gguf import GGMLQuantizationType
    from transformers.integrations.gguf import reader

    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}") from error
    if magic != _MAGIC:
        raise InputRefused(f"{path} is no GGUF file: it does not begin with {_MAGIC.decode()}")

    try:
        with bounded_memory(_MEMORY):
            # gguf's own reader makes an object of every token of the vocabulary, which takes seconds.
            header = reader.GgufHeader.from_file(str(path))
            metadata, _ = reader.read_gguf_metadata(str(path))
            tensors = tuple(
                GgufTensor(tensor.name, GGMLQuantizationType(tensor.ggml_type).name, math.prod(tensor.shape))
                for tensor in header.tensors
            )
            ends = [header.data_start + tensor.offset + tensor.nbytes for tensor in header.tensors]
    except Exception as error:  # a file that is cut short or damaged leads to errors of every kind
        raise InputRefused(
            f"{path} is damaged or cut short ({path.stat().st_size:,} bytes): {str(error)[:160]}; fetch it again"
        ) from error
    if max(ends, default=0) > path.stat().st_size:
        raise InputRefused(
            f"{path} is cut short: its weights end at byte {max(ends):,}, and the file has {path.stat().st_size:,}; "
            "fetch it again"
        )
    if not tensors:
        raise InputRefused(f"{path} holds no weights")
    return GgufHeader(metadata, tensors)
