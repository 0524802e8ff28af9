"""Faults of an object store: every request of an operation counted, and the one chosen ended by a kill or an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import s3fs

from tests.chaos.store_faults import Fault
from training.store.store import Store

CHANGING = (
    "put_object",
    "create_multipart_upload",
    "upload_part",
    "complete_multipart_upload",
    "delete_object",
    "delete_objects",
    "abort_multipart_upload",
)
PART = 5 << 20
"""The smallest part that S3 allows."""

Operation = Callable[[Store, Path], None]


class LostAnswer(Fault):
    """The request that is due is served, and its answer does not arrive."""


@contextmanager
def faulty_network(fault: Fault, changing_only: bool = False) -> Iterator[None]:
    """Let a fault see every request of this process, or every one that changes what the store holds."""
    real, cut = s3fs.S3FileSystem._call_s3, s3fs.core.calculate_chunksize

    async def counted(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        due = (method in CHANGING or not changing_only) and fault.due(method)
        if due and not isinstance(fault, LostAnswer):
            fault.strike()
        answer = await real(self, method, *arguments, **named)
        if due:
            fault.strike()
        return answer

    s3fs.S3FileSystem._call_s3 = counted
    s3fs.core.calculate_chunksize = lambda _size, chunksize=None: PART
    try:
        yield
    finally:
        s3fs.S3FileSystem._call_s3, s3fs.core.calculate_chunksize = real, cut


def clean_processes() -> ForkServerContext:
    """Processes that share no connection and no thread with this one, and start quickly."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["s3fs", "aiobotocore.session", "training.store.store"])
    return context


def killed_remotely(
    variables: dict[str, str], root: str, operation: Operation, source: Path, at: int, changing_only: bool
) -> int:
    """Do something in a process of its own that is killed before a request; return how it ended."""
    process = clean_processes().Process(target=_operate, args=(variables, root, operation, source, at, changing_only))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def with_variables(variables: dict[str, str], work: Callable[..., None], *arguments: Any) -> None:
    """What such a process does: it has the server's address only now."""
    os.environ.update(variables)
    work(*arguments)


def _operate(
    variables: dict[str, str], root: str, operation: Operation, source: Path, at: int, changing_only: bool
) -> None:
    os.environ.update(variables)
    store = Store(root, "r", cache=source.parent / f"cache-{at}")
    with faulty_network(Fault(at), changing_only):
        operation(store, source)
