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
from training.specs.tasks import PROGRAM_TASKS, Task


def why_not_run(task: Task, output: str, runs_programs: bool) -> str:
    """Why Gatehouse does not run a task, as the rest of a sentence about it; empty if it does.

    Args:
        task: The task as the recipe names it.
        output: The kind of request that it makes of a model, in the harness's words.
        runs_programs: It runs what the model wrote.
    """
    if runs_programs and not task.name.startswith(PROGRAM_TASKS):
        return "runs what the model wrote, and not in the sandbox"
    if output == "loglikelihood":
        return "asks whether a text is the greedy one, which Gatehouse does not compute"
    return ""


class OutOfTime(BaseException):
    """The alarm went off. It is no `Exception`: a library that catches everything must not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the main thread after some seconds.

    The alarm repeats every second, in case something swallows the first one. An alarm that was set before goes off at
    the time at which it would have.
    """
    armed = True

    def ring(number: int, frame: FrameType | None) -> None:
        if armed:
            raise OutOfTime

    started = time.monotonic()
    handler_before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        armed = False  # an alarm that is already on its way must not ring any more
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)


@contextmanager
def no_downloaded_code() -> Iterator[None]:
    """Give the harness another package `evaluate`, because the real one downloads Python and runs it.

    The replacement has `code_eval` alone, which runs programs in the sandbox. Any other metric is an `ImportError`.
    """
    before = sys.modules.get("evaluate")
    sys.modules["evaluate"] = replacement = module_from_spec(ModuleSpec("evaluate", None))
    vars(replacement)["load"] = _metric
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
    sandbox()  # built now, so that a sandbox that cannot be built fails before the model has written anything
    return CodeEval()


def sandbox_templates() -> None:
    """Render the harness's templates in jinja's sandbox: in the harness's own environment one can reach any object."""
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

    # Both libraries read the environment once, when they are imported; only these attributes change it afterwards.
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
