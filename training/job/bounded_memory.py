"""A bound on what reading may allocate: a damaged or hostile file can ask for any amount."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def bounded_memory(extra_bytes: int) -> Iterator[None]:
    """Let this process allocate at most `extra_bytes` more than it holds now.

    Beyond that, an allocation fails with MemoryError or an error of the library that asked for it. Only Linux counts
    what a process holds; on other systems nothing is bounded.
    """
    if sys.platform != "linux":
        yield
        return

    # RLIMIT_DATA and not RLIMIT_AS: mapped files and reserved ranges take address space and no memory.
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held_kilobytes = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]

    resource.setrlimit(resource.RLIMIT_DATA, (min([*limits, held_kilobytes * 1024 + extra_bytes]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
