"""Evaluation tasks: a recipe's entries, and local task files, which are data and no code.

A local task file is a YAML task of lm-evaluation-harness with some of its keys. Everything that would run code, read
other data or use the network is refused: `!function` and every other tag, `include`, `class`, `process_docs`, metrics
that are downloaded, and templates that reach into Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from training.errors import RecipeError
from training.specs.base import Spec

TASKS_FOLDER = "tasks"
TASKS_FILE = "tasks.json"
MULTIPLE_CHOICE = "multiple_choice"
DCPMI = "acc_dcpmi"
"""Gatehouse's own score of any multiple choice: domain-conditional PMI (Holtzman et al., 2021, Surface Form
Competition). The harness knows no metric of this name."""
PROGRAM_TASKS = ("humaneval", "mbpp")  # they run what the model wrote, with `code_eval` and thus in the sandbox
LocalMetric = Literal["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "bits_per_byte"]
_METRICS: dict[str, tuple[str, ...]] = {
    MULTIPLE_CHOICE: ("acc", "acc_norm", "acc_bytes", "acc_mutual_info"),
    "loglikelihood_rolling": ("bits_per_byte",),
    "generate_until": ("exact_match",),
}
# They do not aggregate their items by a mean or by sums, so they have no confidence interval.
_NO_MEANS = ("word_perplexity", "byte_perplexity", "perplexity", "f1", "mcc", "bleu", "chrf", "ter", "brier_score")
_MAX_BYTES = 200_000
_MAX_DEPTH = 20
_REACHES_INTO_PYTHON = re.compile(r"__|\{%|\battr\b")


class Task(Spec):
    """A task of lm-evaluation-harness that every model is given."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="The task's name in its file, or that of a public task, such as arc_easy.",
    )
    file: str | None = Field(
        None,
        description="A local task file: a path relative to the recipe's folder; without "
        "one the task is a public one, and its data are downloaded when a model is measured.",
    )
    metrics: dict[str, str] = Field(
        min_length=1,
        description="Gatehouse's metric to the harness's, such as acc_norm, "
        "or `exact_match,strict-match` where the task has several filters. acc_dcpmi "
        "is Gatehouse's own, of any multiple choice.",
    )
    about: str = Field("", description="What the metrics mean; one sentence for the pages.")
    limit: int | None = Field(None, gt=0, description="Most items, of every subtask where the task is a group.")
    shots: int | None = Field(
        None, ge=0, description="Worked examples before a question; the task's own number without it."
    )
    minutes: float = Field(10, gt=0, description="Time limit; a task that runs past it is missing.")

    @field_validator("metrics")
    @classmethod
    def _judgeable(cls, value: dict[str, str]) -> dict[str, str]:
        for metric, key in value.items():
            if not metric.replace("_", "").isalnum() or metric != metric.lower() or not metric[0].isalpha():
                raise ValueError(f"a metric's name is lower-case letters, digits and underscores, not {metric!r}")
            if key.partition(",")[0] in _NO_MEANS:
                raise ValueError(
                    f"{key} is no mean over items, so no interval can be given for it; use another metric "
                    "of the task, such as bits_per_byte or acc"
                )
        return value

    def meanings(self) -> dict[str, str]:
        """Metric to what it means."""
        return {
            metric: self.about or f"{key} of lm-evaluation-harness's task {self.name}"
            for metric, key in self.metrics.items()
        }


class _DataFiles(Spec):
    test: str = Field(pattern=r"^(\.\./)?[a-z_]+\.jsonl$")


class _DatasetArguments(Spec):
    data_files: _DataFiles


class _Metric(Spec):
    metric: LocalMetric
    aggregation: Literal["mean", "bits_per_byte"] = "mean"
    higher_is_better: bool = True


class _Generation(Spec):
    until: tuple[str, ...] = ()
    max_gen_toks: int = Field(64, gt=0)
    do_sample: Literal[False] = False


class _Metadata(Spec):
    version: float = 1.0


class TaskFile(Spec):
    """The keys that a local task file may have; each means what it means in lm-evaluation-harness.

    Attributes:
        dataset_kwargs: `data_files.test` is a file of the evaluation sets, relative to their folder `tasks/`.
    """

    task: str
    dataset_path: Literal["json"]
    dataset_kwargs: _DatasetArguments
    test_split: Literal["test"]
    output_type: Literal["multiple_choice", "loglikelihood_rolling", "generate_until"]
    doc_to_text: str
    doc_to_target: str | int
    doc_to_choice: str | tuple[str, ...] | None = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    num_fewshot: int = Field(0, ge=0)
    metric_list: tuple[_Metric, ...] = Field(min_length=1)
    generation_kwargs: _Generation | None = None
    metadata: _Metadata = _Metadata()

    @field_validator("doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter")
    @classmethod
    def _plain_template(cls, value: str | int | tuple[str, ...] | None) -> str | int | tuple[str, ...] | None:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and _REACHES_INTO_PYTHON.search(text):
                raise ValueError(
                    "a template holds fields of an item and filters, such as {{prompt|trim}}; statements, "
                    "double underscores and attr are refused, because they reach into Python"
                )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        allowed = _METRICS[self.output_type]
        refused = [entry.metric for entry in self.metric_list if entry.metric not in allowed]
        if refused:
            raise ValueError(
                f"metric_list: {self.output_type} has the metrics {', '.join(allowed)}, not {', '.join(refused)}"
            )
        if (self.doc_to_choice is not None) != (self.output_type == MULTIPLE_CHOICE):
            raise ValueError("doc_to_choice: it is needed for multiple_choice, and for nothing else")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the task gives: the harness's that it lists, and Gatehouse's own."""
        gatehouses = (DCPMI,) if self.output_type == MULTIPLE_CHOICE else ()
        return (*(entry.metric for entry in self.metric_list), *gatehouses)

    @property
    def data(self) -> str:
        """The file of its items, relative to the evaluation sets' folder `tasks/`."""
        return self.dataset_kwargs.data_files.test


def misfits(task: Task, file: TaskFile) -> Iterator[tuple[str, str]]:
    """Contradictions between a recipe's entry and its task file: the key of the entry, and the message."""
    if file.task != task.name:
        yield "name", f"{task.file} describes the task {file.task}, not {task.name}"
    for metric, key in task.metrics.items():
        if key not in file.metrics:
            yield f"metrics.{metric}", f"{task.file} gives no {key}; it gives {', '.join(file.metrics)}"


def read_task_file(path: Path) -> TaskFile:
    """The task of a local file.

    Raises:
        RecipeError: It cannot be read or is not a task file; every problem is a line with the file, its line and key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise RecipeError(f"{path}: more than {_MAX_BYTES:,} bytes are too many for a task")
        text = data.decode()
        _refuse_programs(text, path)
        content, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: this is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}:1: a mapping of keys to values is expected here, such as `task: mine`")

    try:
        return TaskFile.model_validate(_tuples(content), strict=True)
    except ValidationError as error:
        raise RecipeError("\n".join(_problems(path, node, error))) from error


def _refuse_programs(text: str, path: Path) -> None:
    """Refuse tags, which run code, aliases and merges, which can multiply a file's size, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        where = f"{path}:{event.start_mark.line + 1}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise RecipeError(f"{where}: the values are nested too deeply (limit {_MAX_DEPTH})")
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(f"{where}: the alias *{event.anchor} is refused: write the value again")
        if tag := getattr(event, "tag", None):
            raise RecipeError(f"{where}: the tag {tag[:100]} is refused: a local task is data and runs no code")


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(child) for key, child in value.items()}
    return tuple(_tuples(child) for child in value) if isinstance(value, list) else value


def _problems(path: Path, node: yaml.Node, error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        keys = [str(key) for key in detail["loc"]]
        dotted = f"{'.'.join(keys)}: " if keys else ""
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = (
                "this key is not allowed: a local task is data and runs no code; the keys are "
                f"{', '.join(TaskFile.model_fields)}"
            )
        yield f"{path}:{_line(node, keys)}: {dotted}{message}"


def _line(node: yaml.Node, keys: Iterable[str]) -> int:
    """Line of the deepest of the keys that the file has."""
    line = int(node.start_mark.line) + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            entry = next((pair for pair in node.value if pair[0].value == key), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
        else:
            break
    return line
