"""Callbacks of every training job: events for people and trackers, checkpoints, preemption."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.engine.batches import SHARE
from training.engine.runtime import Runtime
from training.job.events import EventWriter

if TYPE_CHECKING:
    from training.engine.trainer import Plan

_PROGRESS_SECONDS = 1.0
# TRL's names of metrics to those in events and reports.
_RENAMED = {
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "logps/chosen": "logprob_chosen",
    "logps/rejected": "logprob_rejected",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
}
_SHOWN_SOURCES = 3
_KEPT = ("loss", "learning_rate", "grad_norm", "clipped_share")


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Turns logs into events, and keeps the rows of report/training.jsonl in the trainer's state.

    Args:
        plan: The trainer's.
        events: Where they are written.
        extra: Constant metrics recorded with the first log, such as the number of FP8 layers.
    """

    def __init__(self, plan: Plan, events: EventWriter, extra: dict[str, float]) -> None:
        self._plan = plan
        self._events = events
        self._extra = extra
        self._note = ""
        self._last_progress = 0.0
        self._started = self._window_started = time.monotonic()
        self._window_tokens = plan.batches.tokens_before(plan.first_step)
        self.seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started = self._window_started = time.monotonic()
        psutil.cpu_percent()  # the first call only sets the point that the next one measures from
        self._progress(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show progress, at most once a second: a small model takes hundreds of steps in one."""
        if time.monotonic() - self._last_progress >= _PROGRESS_SECONDS:
            self._progress(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record the metrics of a step; the summary that the Trainer logs at the end is left out."""
        if logs is None or "loss" not in logs:
            state.log_history.pop()
            return

        step, now = state.global_step, time.monotonic()
        tokens = self._plan.batches.tokens_before(step)
        speed = (tokens - self._window_tokens) / max(now - self._window_started, 1e-9)
        self._window_tokens, self._window_started = tokens, now

        values = {name: float(logs[name]) for name in _KEPT if name in logs}
        values |= {name: float(logs[key]) for key, name in _RENAMED.items() if key in logs}
        shares = {name.removeprefix(SHARE): float(logs[name]) for name in logs if name.startswith(SHARE)}
        values |= {f"{SHARE}{name}": share for name, share in shares.items()}
        values |= {"tokens": float(tokens), "tokens_per_second": speed, "flops": float(state.total_flos)}
        # The state is saved in checkpoints, so the report of a resumed run holds the rows from before.
        state.log_history[-1] = {"step": step, **values}

        self._note = f"loss {values['loss']:.2f} · {_thousands(speed)} tok/s"
        if shares:
            largest = sorted(shares, key=lambda name: -shares[name])[:_SHOWN_SOURCES]
            self._note += " · " + ", ".join(f"{name} {shares[name]:.1%}" for name in largest)
        self._events.metrics(step, values | system_metrics(self._plan.runtime) | self._extra)
        self._extra = {}
        self._progress(step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self._started

    def _progress(self, step: int) -> None:
        self._last_progress = time.monotonic()
        self._events.progress(step, self._plan.batches.steps, "steps", note=self._note)


class Checkpointer(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Asks for a checkpoint every so many steps, and for a last one when the job is told to stop."""

    def __init__(self, plan: Plan) -> None:
        self._rule = plan.section.checkpoints
        self._runtime = plan.runtime
        self._steps = plan.batches.steps
        self._told_to_stop = False
        self.preempted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen for SIGTERM."""
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide about a checkpoint; its step is logged too, so that a resumed run logs the same rows.

        After the last step one is written only where it is kept for good.
        """
        if state.global_step >= self._steps:
            if self._rule.for_good(self._steps):
                control.should_log = control.should_save = True
            return
        self.preempted = self._anyone_told_to_stop()
        if self.preempted or self._rule.due(state.global_step):
            control.should_log = True
            control.should_save = True
        if self.preempted:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ignore SIGTERM from here on: the job ends sooner than a restart would."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._told_to_stop = True

    def _anyone_told_to_stop(self) -> bool:
        """Whether any rank was told to stop; the same on every rank, because all must stop at the same step."""
        if self._runtime.world_size == 1:
            return self._told_to_stop
        flag = torch.tensor([int(self._told_to_stop)], device=self._runtime.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


def system_metrics(runtime: Runtime) -> dict[str, float]:
    """Use of this machine.

    Returns:
        `memory_bytes`: the peak of this process on its GPU, or its resident memory on a CPU. `system/...`: percent of
        all cores, and megabytes of the machine's memory, under the names that MLflow shows as system metrics.
    """
    if runtime.device.type == "cuda":
        memory = float(torch.cuda.max_memory_allocated(runtime.device))
    else:
        memory = float(psutil.Process().memory_info().rss)
    return {
        "memory_bytes": memory,
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/memory_usage_megabytes": psutil.virtual_memory().used / 1e6,
    }


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"
