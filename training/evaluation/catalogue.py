"""lm-evaluation-harness's public tasks: their names, and the metrics and filters that each gives."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.evaluation.harness_limits import why_not_run
from training.specs.base import Spec
from training.specs.recipe_check import Key
from training.specs.tasks import DCPMI, MULTIPLE_CHOICE, Task

# What the harness measures where a task's file names no metrics.
_DEFAULT_METRICS = {
    MULTIPLE_CHOICE: ("acc", "acc_norm"), "generate_until": ("exact_match",),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}  # fmt: skip
_NO_FILTER = "none"
_PYTHON = "py_task"


class PublicTask(Spec):
    """One entry of the harness's own list.

    Attributes:
        kind: `task`, `group`, `tag` or `py_task`.
        parts: Subtasks of a group or members of a tag; empty for a task.
        output: The kind of request that the task makes of a model, such as `multiple_choice`.
        metrics: None where Python decides them: they are known only when the task runs.
        filters: Names of the filters that its answers are passed through.
        runs_programs: It runs what the model wrote.
    """

    kind: str
    parts: tuple[str, ...] = ()
    output: str = ""
    metrics: tuple[str, ...] | None = None
    filters: tuple[str, ...] = (_NO_FILTER,)
    runs_programs: bool = False


Catalogue = dict[str, PublicTask]


def task_problems(tasks: Sequence[Task], cache: Path) -> Iterator[tuple[Key, str]]:
    """Public tasks, or metrics of them, that the harness does not have or Gatehouse does not run.

    Args:
        tasks: The recipe's tasks; local ones are passed over.
        cache: Folder for the list of public tasks, which takes half a minute to make.

    Yields:
        The key below `evaluation_sets.tasks`, and the message.
    """
    public = [(index, task) for index, task in enumerate(tasks) if task.file is None]
    if not public:
        return

    names = catalogue(cache)
    for index, task in public:
        if task.name not in names:
            close = difflib.get_close_matches(task.name, names, n=1)
            remedy = f"did you mean {close[0]}?" if close else "a local one needs its `file`"
            yield (index, "name"), f"lm-evaluation-harness has no public task of this name; {remedy}"
            continue
        yield from (((index, *key), message) for key, message in _task_problems(task, names))


def catalogue(cache: Path) -> Catalogue:
    """All public tasks by name, from the cache where this version of the harness has been listed before."""
    path = cache / f"harness-{version('lm_eval')}.json"
    try:
        return {name: PublicTask.model_validate(task) for name, task in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError):
        public_tasks = _listed()

    cache.mkdir(parents=True, exist_ok=True)
    content = {name: task.model_dump(mode="json", exclude_defaults=True) for name, task in public_tasks.items()}
    # Another process may read or write the same list: it sees a whole file or none.
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)
    return public_tasks


def _task_problems(task: Task, names: Catalogue) -> Iterator[tuple[Key, str]]:
    for name, public in _leaves(task.name, names):
        if reason := why_not_run(task, public.output, public.runs_programs):
            yield ("name",), f"{name} {reason}; leave it out"
            return

    for metric, key in task.metrics.items():
        public_metric, _, filter_name = key.partition(",")
        for name, public in _leaves(task.name, names):
            if key == DCPMI and public.output == MULTIPLE_CHOICE:  # Gatehouse's own score of any multiple choice
                continue
            if public.metrics is not None and public_metric not in public.metrics:
                yield ("metrics", metric), f"{name} gives no {public_metric}; it gives {', '.join(public.metrics)}"
                break
            if filter_name and filter_name not in public.filters:
                yield ("metrics", metric), f"{name} has no filter {filter_name}; it has {', '.join(public.filters)}"
                break


def _leaves(name: str, names: Catalogue, above: tuple[str, ...] = ()) -> Iterator[tuple[str, PublicTask]]:
    """The tasks that a name stands for; groups and tags can contain one another, and even themselves."""
    public = names.get(name)
    if public is None or name in above:
        return
    if not public.parts:
        yield name, public
    for part in public.parts:
        yield from _leaves(part, names, (*above, name))


def _listed() -> Catalogue:
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    members: dict[str, list[str]] = {}
    for name, entry in index.items():
        for tag in entry.tags:
            members.setdefault(tag, []).append(name)
    return {name: _described(entry, members.get(name, ())) for name, entry in index.items()}


def _described(entry: Any, members: Sequence[str]) -> PublicTask:
    kind, content = entry.kind.name.lower(), entry.cfg or {}
    if kind in ("group", "tag"):
        subtasks = content.get("task") if kind == "group" else members
        parts = [
            part if isinstance(part, str) else str(part.get("task", part.get("group", "")))
            for part in ([subtasks] if isinstance(subtasks, str) else subtasks or ())
        ]
        return PublicTask(kind=kind, parts=tuple(parts))

    output = str(content.get("output_type", ""))
    return PublicTask(
        kind=kind,
        output=output,
        metrics=None if kind == _PYTHON else _metrics(content, output),
        filters=tuple(str(entry["name"]) for entry in content.get("filter_list") or ()) or (_NO_FILTER,),
        runs_programs=bool(content.get("unsafe_code")),
    )


def _metrics(content: dict[str, Any], output: str) -> tuple[str, ...] | None:
    listed = content.get("metric_list")
    if listed is None:
        return _DEFAULT_METRICS.get(output)
    names = tuple(str(entry.get("metric")) for entry in listed)
    # Some metrics are functions of the task's own Python, named by a path. Nothing says which values they return.
    return None if any(os.sep in name or "." in name or not name for name in names) else names
