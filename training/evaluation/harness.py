"""Runs tasks of EleutherAI's lm-evaluation-harness on a model, within time limits, and keeps every item's score."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import InputRefused, RecipeError
from training.evaluation.harness_limits import (
    OutOfTime,
    no_downloaded_code,
    online,
    sandbox_templates,
    time_limit,
    why_not_run,
)
from training.evaluation.models import LoadedModel
from training.evaluation.sandbox import sandbox
from training.evaluation.scoring import TIE_NATS
from training.specs.evaluation import EvaluationSection
from training.specs.tasks import (
    DCPMI,
    MULTIPLE_CHOICE,
    PROGRAM_TASKS,
    TASKS_FILE,
    TASKS_FOLDER,
    Task,
    read_task_file,
)

Row = dict[str, Any]
_SHOWN = 2000  # characters of a prompt or an answer that an item keeps
_CHOICE_SCORES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", DCPMI)


@dataclass(frozen=True)
class TaskResult:
    """The result of one metric of a task.

    Attributes:
        metric: Gatehouse's name of it.
        items: `id`, `score`, for a ratio `weight`, and keys that explain the score.
        missing: Why there are no items; None when there are.
    """

    metric: str
    items: list[Row] = field(default_factory=list)
    missing: str | None = None


class _Missing(Exception):
    """Why a task, or a metric of it, has no result."""


def read_tasks(suite: Path) -> tuple[Task, ...]:
    """The tasks of an evaluation set's folder.

    Raises:
        InputRefused: The list is missing or malformed.
    """
    path = suite / TASKS_FOLDER / TASKS_FILE
    try:
        return tuple(Task.model_validate(row) for row in json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise InputRefused(f"{path} is no list of tasks ({error}); materialize evaluation_sets again") from error


def task_metrics(suite: Path) -> dict[str, str]:
    """The metrics of all tasks of an evaluation set's folder: name to meaning.

    Raises:
        InputRefused: The list of tasks is missing or malformed.
    """
    return {metric: meaning for task in read_tasks(suite) for metric, meaning in task.meanings().items()}


def run_tasks(
    loaded: LoadedModel, suite: Path, section: EvaluationSection, on_phase: Callable[[str], None]
) -> list[TaskResult]:
    """Give a model every task of the suite, one after the other, each within its time limit.

    A base model reads an item as plain text, any other model in its chat template. A task that fails leaves its metrics
    missing with the reason, and the next one runs. Call this from the main thread: the limit is an alarm signal.

    Args:
        loaded: The model.
        suite: Folder of a version of `evaluation_sets`.
        section: Batch and context.
        on_phase: Called with `task <name>` before each task.

    Returns:
        One result for each metric of each task.

    Raises:
        InputRefused: The list of tasks is missing or malformed.
    """
    results = []
    for task in read_tasks(suite):
        on_phase(f"task {task.name}")
        try:
            with time_limit(task.minutes * 60), no_downloaded_code():
                results += _run(loaded, suite, section, task)
            continue
        except OutOfTime:
            reason = f"the task {task.name} ran past its limit of {task.minutes:g} minutes"
        except _Missing as error:
            reason = f"the task {task.name}: {error}"
        except Exception as error:  # a task's own code, its data and the harness can raise any error
            reason = f"the task {task.name} failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        results += [TaskResult(metric, missing=reason) for metric in task.metrics]
    return results


def _run(loaded: LoadedModel, suite: Path, section: EvaluationSection, task: Task) -> list[TaskResult]:
    from lm_eval.evaluator import evaluate

    from training.evaluation.harness_model import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    sandbox_templates()
    loaded_tasks = _local(suite, task) if task.file is not None else _public(task)
    for harness_task in loaded_tasks["tasks"].values():
        _prepare(harness_task, task)

    model = HarnessModel(loaded, section.batch, section.context, dcpmi=DCPMI in task.metrics.values())
    results = evaluate(
        lm=model,
        task_dict=loaded_tasks,
        limit=task.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=loaded.is_chat,
        fewshot_as_multiturn=loaded.is_chat,
        confirm_run_unsafe_code=task.name.startswith(PROGRAM_TASKS),
    )
    return [
        _result(metric, key, results["samples"], loaded_tasks["tasks"], model.elsewhere)
        for metric, key in task.metrics.items()
    ]


def _local(suite: Path, task: Task) -> Mapping[str, Any]:
    """A local task over a file of the suite; nothing but that file is read, and nothing is cached."""
    import datasets
    from lm_eval.tasks import TaskManager

    folder = suite / TASKS_FOLDER
    try:
        file = read_task_file(folder / f"{task.name}.yaml")
    except RecipeError as error:
        raise InputRefused(f"{error}; materialize evaluation_sets again") from error

    # U+2028 and its like may stand inside a row: only "\n" ends one.
    lines = (folder / file.data).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    if not rows:
        raise _Missing(f"{file.data} of the evaluation sets holds no items")

    content = file.model_dump(mode="json", exclude_none=True)
    content["custom_dataset"] = lambda **_: {"test": datasets.Dataset.from_list(rows)}
    tasks: Mapping[str, Any] = TaskManager(include_defaults=False).load([content])
    return tasks


def _public(task: Task) -> Mapping[str, Any]:
    """A task that comes with the harness; its data come from huggingface.co or from the cache of earlier downloads."""
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # else langdetect draws, and IFEval judges the language of an answer anew in every run
    manager = _catalogue()
    if task.name not in manager.task_index:
        raise _Missing("lm-evaluation-harness has no public task of this name; a local one needs its `file`")
    with online():
        try:
            tasks: Mapping[str, Any] = manager.load([task.name])
        except OSError as error:
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise _Missing(
                f"its data could not be had from huggingface.co: {cause}; fetch them where there is a network (the "
                "cache in $HF_HOME is used), or leave the task out"
            ) from error
    return tasks


@functools.cache
def _catalogue() -> Any:
    """All public tasks by name: the harness reads some 14,000 files for it, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _prepare(harness_task: Any, task: Task) -> None:
    """Set the shots of a task of the harness.

    Raises:
        _Missing: Gatehouse does not run it.
    """
    if reason := why_not_run(task, harness_task.OUTPUT_TYPE, _runs_programs(harness_task)):
        raise _Missing(f"it {reason}")
    if task.shots is not None:
        harness_task.set_config(key="num_fewshot", value=task.shots)
    elif harness_task.get_config("num_fewshot") is None:
        harness_task.set_config(key="num_fewshot", value=0)
    harness_task.set_fewshot_seed(seed=0)


def _runs_programs(harness_task: Any) -> bool:
    return bool(getattr(harness_task, "UNSAFE_CODE", False))


def _result(
    metric: str,
    key: str,
    samples: Mapping[str, list[Row]],
    tasks: Mapping[str, Any],
    elsewhere: Mapping[tuple[str, int, int], float],
) -> TaskResult:
    """The items of one metric, or why there are none.

    Args:
        metric: Gatehouse's name of it.
        key: The harness's name of it, and of a filter after a comma.
        samples: Name of a task to the harness's records of its items.
        tasks: Name of a task to the harness's task.
        elsewhere: As in `HarnessModel`.
    """
    name, _, filter_name = key.partition(",")
    items: list[Row] = []
    for task, rows in samples.items():
        task_filter = filter_name or rows[0]["filter"]
        for row in rows:
            if row["filter"] != task_filter:
                continue
            if name == DCPMI:
                row = row | {DCPMI: _gains(tasks[task], task, row, elsewhere)}
            if name not in row:
                metrics = ", ".join(row["metrics"])
                return TaskResult(metric, missing=f"the task {task} gives no {key}; it gives {metrics}")
            items.append(_item(tasks[task], task, row, name))

    if not items:
        return TaskResult(metric, missing=f"no item of the task has the filter {filter_name}")
    return TaskResult(metric, items)


def _item(harness_task: Any, task: str, row: Row, name: str) -> Row:
    """An item's score and what explains it.

    An item without an id of its own is named by a digest of its content too: if the public data change, the items of
    versions that were measured before and after have different names.
    """
    item_id = row["doc"].get("id") if isinstance(row["doc"], dict) else None
    item: Row = {
        "id": str(item_id) if item_id is not None else f"{task}:{row['doc_id']}:{row['doc_hash'][:8]}",
        "prompt": _shown(row["arguments"][0][0]),
    }

    if harness_task.OUTPUT_TYPE == MULTIPLE_CHOICE:
        if name not in _CHOICE_SCORES:
            raise _Missing(f"{name} of a multiple choice is none of {', '.join(_CHOICE_SCORES)}")
        return item | _choice(harness_task, row, name)

    if name == "bits_per_byte":
        nats, size = row[name]
        return item | {"score": -nats / math.log(2), "weight": float(size)}

    if isinstance(row[name], (tuple, list, dict)):
        raise _Missing(f"{name} is no mean over its items, so no interval can be given for it")
    item["score"] = float(row[name])
    response = row["filtered_resps"][0]
    if _runs_programs(harness_task):
        program = response[0] if isinstance(response, list) else response
        return item | {"answer": _shown(program), "fault": sandbox().fault(f"{program}\n{row['target']}")}
    return item | {"answer": _shown(response), "target": _shown(row["target"])}


def _gains(harness_task: Any, task: str, row: Row, elsewhere: Mapping[tuple[str, int, int], float]) -> list[float]:
    """By how many nats each choice is likelier after its question than after others.

    This is DC-PMI (Holtzman et al., "Surface Form Competition", 2021), with other items' questions as the domain's
    premise.
    """
    if harness_task.OUTPUT_TYPE != MULTIPLE_CHOICE or not isinstance(row["target"], int):
        raise _Missing(f"{DCPMI} needs a multiple choice whose right answer is given by its number")
    count = len(harness_task.doc_to_choice(row["doc"]))
    return [
        response[0] - elsewhere[task, row["doc_id"], place]
        for place, response in enumerate(row["filtered_resps"][:count])
    ]


def _choice(harness_task: Any, row: Row, name: str) -> Row:
    """The verdict on a multiple choice, with each choice's score; a tie for the first place is wrong."""
    choices = [str(choice) for choice in harness_task.doc_to_choice(row["doc"])]
    nats = np.array([response[0] for response in row["filtered_resps"]], dtype=np.float64)
    scores = nats[: len(choices)]
    if name == DCPMI:
        scores = np.array(row[DCPMI], dtype=np.float64)
    elif name == "acc_mutual_info":
        scores = scores - nats[len(choices) :]  # the choices after no question follow those after the question
    elif name != "acc":
        scores = scores / [len(choice if name == "acc_norm" else choice.encode()) for choice in choices]

    ranked = np.sort(scores)
    tie = len(ranked) > 1 and ranked[-1] - ranked[-2] <= TIE_NATS
    verdict = np.argmax(scores) == row["target"] if name == DCPMI else row[name]
    right = float(verdict) if np.isfinite(scores).all() else math.nan
    return {
        "score": 0.0 if tie else right,
        "choices": [_shown(choice) for choice in choices],
        "target": row["target"],
        "chosen": int(np.argmax(scores)),
        "likelihoods": [float(score) for score in scores],
    }


def _shown(value: object) -> str:
    """The end of a text, where the question stands."""
    return str(value)[-_SHOWN:]
