"""How a job ended when it did not end well: `ending.json` in its attempt folder.

A launcher reads it beside the exit code. The exit code alone would not do: torchrun answers 1 whatever its ranks said.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from training.errors import EXIT_PREEMPTED, GatehouseError
from training.specs.base import Spec

_FILE = "ending.json"
# What torch, CUDA's allocator and C++ put into an error that has no type of its own.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")


class JobOutcome(Spec):
    """Why a job ended before its work was done.

    Attributes:
        kind: `refused` is a person's mistake. `failed` is a fault, with its traceback as the message. After any other
            kind the job is to be started again.
    """

    kind: Literal["refused", "failed", "preempted", "out_of_memory", "rolled_back"]
    message: str
    micro_batch_tokens: int | None = Field(None, description="Tokens per rank and forward pass to start again with.")


class RestartRequested(GatehouseError):
    """The job ends before its work is done and is to be started again; nothing is lost."""

    exit_code = EXIT_PREEMPTED

    def __init__(self, outcome: JobOutcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def write(attempt: Path, outcome: JobOutcome) -> None:
    """Write down how the job ended, unless a rank has done so already.

    The first rank that fails knows the cause; the others end because of it.
    """
    with suppress(OSError), (attempt / _FILE).open("x") as file:  # on a full disk the exit code has to do
        file.write(outcome.model_dump_json())


def read(attempt: Path) -> JobOutcome | None:
    """The outcome that the job wrote down, None when there is none."""
    try:
        return JobOutcome.model_validate_json((attempt / _FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def clear(attempt: Path) -> None:
    """Remove the outcome of an earlier start of the job."""
    (attempt / _FILE).unlink(missing_ok=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is a failed allocation on the CPU or a GPU."""
    cause: BaseException | None = error
    while cause is not None:
        # By name, because torch's OutOfMemoryError cannot be imported here: the control plane reads this module.
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _OUT_OF_MEMORY):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
