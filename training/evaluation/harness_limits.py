"""What a task may take and may do: its time, its templates, the network."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import FrameType

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.evaluation.sandbox import CodeEval, sandbox


class OutOfTime(BaseException):
    """The alarm went off. No `Exception`: a library that catches everything must not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the main thread after some seconds; an alarm that was set before goes off as it would have.

    The alarm repeats every second, for the case that something swallows the first one.
    """
    armed = True

    def ring(number: int, frame: FrameType | None) -> None:
        if armed:
            raise OutOfTime

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)


@contextmanager
def no_downloaded_code() -> Iterator[None]:
    """The package `evaluate` downloads Python and runs it: the harness gets another one.

    All that this one has is `code_eval`, with the sandbox beneath it; any other metric is an `ImportError`.
    """
    before = sys.modules.get("evaluate")
    sys.modules["evaluate"] = ours = module_from_spec(ModuleSpec("evaluate", None))
    vars(ours)["load"] = _metric
    try:
        yield
    finally:
        if before is None:
            del sys.modules["evaluate"]
        else:
            sys.modules["evaluate"] = before


def _metric(name: str, *_: object, **__: object) -> CodeEval:
    if name != "code_eval":
        raise ImportError(f"the metric {name} is Python from the hub; Gatehouse downloads no code")
    sandbox()
    return CodeEval()


def sandbox_templates() -> None:
    """Render the harness's templates in jinja's sandbox; its own environment would let a template reach any object."""
    from lm_eval import utils

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(utils.env.filters)
    utils.env = environment


@contextmanager
def online() -> Iterator[None]:
    """Let a public task fetch its data; everything else in an evaluation is offline.

    `HF_DATASETS_OFFLINE=1` forbids it, and then only the cache of earlier downloads is read.
    """
    if os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield
        return
    import datasets
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
