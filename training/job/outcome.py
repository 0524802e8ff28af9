"""How a job ended when it did not end well: `ending.json` in its attempt folder.

A launcher reads it beside the exit code, for torchrun answers 1 whatever its ranks said.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from training.errors import EXIT_PREEMPTED, GatehouseError
from training.specs.base import Spec

_FILE = "ending.json"
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")


class Ending(Spec):
    """Why a job ended before its work was done.

    Attributes:
        kind: `refused` is a person's mistake and `failed` a fault, with its traceback as the message; after any other
            the job is to be started again.
    """

    kind: Literal["refused", "failed", "preempted", "out_of_memory", "rolled_back"]
    message: str
    micro_batch_tokens: int | None = Field(None, description="Tokens per rank and forward pass to start again with.")


class Interrupted(GatehouseError):
    """The job ends before its work is done and is to be started again; nothing is lost."""

    exit_code = EXIT_PREEMPTED

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message)
        self.ending = ending


def write(attempt: Path, ending: Ending) -> None:
    """Say how the job ended; the first rank's word counts, as the others only follow it."""
    with suppress(OSError), (attempt / _FILE).open("x") as file:  # no room to say it: then the exit code has to do
        file.write(ending.model_dump_json())


def read(attempt: Path) -> Ending | None:
    """What the job said, if anything."""
    try:
        return Ending.model_validate_json((attempt / _FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def clear(attempt: Path) -> None:
    """Forget what an earlier start of the job said."""
    (attempt / _FILE).unlink(missing_ok=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is a failed allocation on the CPU or a GPU."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return True
        if isinstance(seen, RuntimeError) and any(sign in str(seen) for sign in _OUT_OF_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
